"""report.md: command, results and figures of a run."""

from pathlib import Path
from typing import Any

from dpn.common.errors import FileError
from dpn.common.files import write_text
from dpn.common.optional import optional
from dpn.common.table import Table, terminal
from dpn.common.text import code_span, escape_markdown, markdown_image
from dpn.reports.differences import differences
from dpn.reports.figures import draw
from dpn.reports.tables import OVERVIEW, tables
from dpn.runs.saved import read_answers, read_metrics, read_status


def write_report(folder: Path, against: str | None = None) -> Path:
    """Write report.md and the figures from metrics.json and rows.jsonl.

    Args:
        folder: Folder of the results.
        against: Folder of another model's results on the same questions.

    A table or figure that cannot be made has a sentence in its place.

    Raises:
        FileNotFoundError: If one of the folders has no results.
        FileError: If its files are damaged.
    """
    metrics, rows = read_results(folder)
    status, failed = _status(folder)
    shown = tables(metrics, rows)
    if against:
        theirs = read_results(Path(against))[1]
        with optional("The comparison with the other model", failed):
            shown[-1:-1] = differences(rows, theirs, against)
    figures: list[Path] = []
    with optional("The figures", failed):
        figures = draw(rows, folder / "figures")
    figures += sorted(folder.glob("figures/overlays/*.png"))
    parts = [
        f"# {escape_markdown(folder.name)}",
        code_span(str(status["command"])) if status.get("command") else "",
        f"Method: {code_span(str(status['method']))}" if status.get("method") else "",
        *(table.markdown() for table in shown),
        *(markdown_image(path.stem, path.relative_to(folder).as_posix()) for path in figures),
        *map(escape_markdown, failed),
    ]
    page = folder / "report.md"
    write_text(page, "\n\n".join(part.strip() for part in parts if part) + "\n")
    return page


def print_tables(folder: Path) -> None:
    """Print the tables of a folder with results."""
    console, shown = terminal(), results_of(folder)
    for table in shown[:1] if shown[0].title == OVERVIEW else shown:
        table.show(console)
    console.print(f"Report: {folder / 'report.md'}", soft_wrap=True)


def results_of(folder: Path) -> list[Table]:
    """The tables of a folder with results."""
    return tables(*read_results(folder))


def read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and rows of a folder.

    Raises:
        FileNotFoundError: If it has none.
        FileError: If they are damaged.
    """
    try:
        return read_metrics(folder), read_answers(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"run={folder} holds no results: expected metrics.json and rows.jsonl in it; run"
            " dpn.train to its end, or dpn.eval."
        ) from None


def damaged_results(folder: Path) -> str | None:
    """What is wrong with metrics or rows of a finished run; None if they can be read."""
    try:
        read_results(folder)
    except (FileNotFoundError, FileError) as error:
        return str(error)
    return None


def _status(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The status of a folder, and sentences about what could not be made or read."""
    try:
        status = read_status(folder)
    except FileError as damage:
        return {}, [str(damage)]
    return status, list(map(str, status.get("not_made", [])))
