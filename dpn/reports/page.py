"""report.md: command, results and figures of a run."""

from pathlib import Path
from typing import Any

from rich.console import Console

from dpn.common.files import read_json, read_rows, write_text
from dpn.common.table import Table
from dpn.reports.differences import differences
from dpn.reports.figures import draw
from dpn.reports.tables import OVERVIEW, tables


def write_report(folder: Path, against: str | None = None) -> Path:
    """Write report.md and the figures from metrics.json and rows.jsonl.

    Args:
        folder: Folder of the results.
        against: Folder of another model's results on the same questions.

    Raises:
        FileNotFoundError: If one of the folders has no results.
    """
    metrics, rows = read_results(folder)
    status: dict[str, Any] = read_json(folder / "status.json") or {}
    shown = tables(metrics, rows)
    if against:
        shown[-1:-1] = differences(rows, read_results(Path(against))[1], against)
    figures = [*draw(rows, folder / "figures"), *sorted(folder.glob("figures/overlays/*.png"))]
    links = (str(figure.relative_to(folder)) for figure in figures)
    parts = [
        f"# {folder.name}",
        f"`{status['command']}`" if status.get("command") else "",
        *(table.markdown() for table in shown),
        *(f"![{Path(link).stem}]({link})" for link in links),
    ]
    page = folder / "report.md"
    write_text(page, "\n\n".join(part.strip() for part in parts if part) + "\n")
    return page


def print_tables(folder: Path) -> None:
    """Print the tables of a folder with results."""
    console, shown = Console(), results_of(folder)
    for table in shown[:1] if shown[0].title == OVERVIEW else shown:
        table.show(console)
    console.print(f"Report: {folder / 'report.md'}", soft_wrap=True, highlight=False)


def results_of(folder: Path) -> list[Table]:
    """The tables of a folder with results."""
    return tables(*read_results(folder))


def read_results(folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics and rows of a folder.

    Raises:
        FileNotFoundError: If it has none.
    """
    metrics = read_json(folder / "metrics.json")
    if metrics is None or not (folder / "rows.jsonl").exists():
        raise FileNotFoundError(
            f"run={folder} holds no results: expected metrics.json and rows.jsonl in it; run"
            " dpn.train to its end, or dpn.eval."
        )
    return metrics, read_rows(folder / "rows.jsonl")
