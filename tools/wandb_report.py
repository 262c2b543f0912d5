"""Create the dashboard of a Weights & Biases project.

    pip install 'dpn[wandb-reports]' && wandb login
    python tools/wandb_report.py run=RUN entity=TEAM

Any finished run of the project can be used: its results name the layers, families and options.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpn.cli.arguments import read_arguments
from dpn.cli.door import readable_errors
from dpn.reports.page import read_results
from dpn.runs.folder import RunError
from dpn.training.dashboards import EXAMPLES_TABLE, results
from dpn.training.loggers import has_key

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

STEP = "trainer/global_step"


def wandb_report(run: str, entity: str, project: str = "dpn") -> str:
    """Upload the dashboard and return its address.

    Args:
        run: Folder of a finished run.
        entity: User or team on Weights & Biases.
        project: Project whose runs are shown.

    Raises:
        RunError: If the package or the API key is missing, or Weights & Biases refuses the upload.
    """
    names = list(results(*read_results(Path(run))))
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise RunError(
            "Dashboards need wandb-workspaces; install it: pip install 'dpn[wandb-reports]'."
        ) from error
    if not has_key():
        raise RunError("There is no API key for Weights & Biases; log in first: wandb login.")
    try:
        return dashboard(names, entity, project).save().url
    except (wandb.Error, ValueError) as error:
        raise RunError(f"Weights & Biases refused the dashboard: {error}") from error


def dashboard(names: Sequence[str], entity: str, project: str) -> "ws.Workspace":
    """Build the dashboard for runs whose results have these names."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def of(prefix: str) -> list[str]:
        return [name for name in names if name.startswith(prefix)]

    share = wr.SummaryMetric("cost/visual_macs_ratio")
    routes: dict[str, list[str]] = {}
    for name in of("routes/"):
        routes.setdefault(name.rpartition("/")[0], []).append(name)
    sections = {
        "Accuracy against visual MACs": [
            wr.ScatterPlot(title=name, x=share, y=wr.SummaryMetric(name))
            for name in of("val/accuracy")
        ],
        "Kept rows by layer": [
            wr.LinePlot(title="while training", x=STEP, y=of("router/kept/")),
            wr.BarPlot(title="in evaluation", metrics=of("router/kept/")),
        ],
        "Routes by family": [
            wr.BarPlot(title=place, metrics=options, range_x=(0, 1))
            for place, options in routes.items()
        ],
        "Loss": [
            wr.LinePlot(title="training", x=STEP, metric_regex="^loss/"),
            wr.LinePlot(title="validation", x=STEP, y=["val/loss"]),
        ],
        "Speed": [
            wr.LinePlot(title="ms per step", x=STEP, y=["time/step_ms"]),
            *(wr.BarPlot(title=name, metrics=[name]) for name in of("time/")),
        ],
        "Answers": [wr.WeavePanelSummaryTable(table_name=EXAMPLES_TABLE)],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Accuracy and visual work",
        sections=[
            ws.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections.items()
        ],
    )


def main() -> None:
    """Command line of `python tools/wandb_report.py`."""
    with readable_errors():
        print(wandb_report(**read_arguments(wandb_report, sys.argv[1:])))


if __name__ == "__main__":
    main()
