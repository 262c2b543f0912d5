"""The report of a comparison: a self-contained page, report.md with its figures, and runs.csv."""

import csv
from pathlib import Path

from dpn.common.files import atomic_path, write_text
from dpn.common.table import Table, plain
from dpn.reports import comparison_tables as tables
from dpn.reports.charts import Chart, charts
from dpn.reports.comparison import Comparison
from dpn.reports.drawing import save
from dpn.reports.html import write_page
from dpn.reports.points import Point
from dpn.reports.tables import routes


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write report.html, report.md with its figures, and runs.csv; return the path of the page."""
    shown = charts(found.points)
    figures = [save(chart, found.methods, folder / "figures") for chart in shown]
    parts = [
        "# Comparison of runs",
        _counts(found),
        *(table.markdown().strip() for table in all_tables(found)),
        *(_picture(*pair, folder) for pair in zip(shown, figures, strict=True)),
    ]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    _write_csv(found, folder / "runs.csv")
    return write_page(found, shown, folder / "report.html")


def all_tables(found: Comparison) -> list[Table]:
    """All tables that are not empty."""
    points = found.points
    first = (tables.methods, tables.budgets, tables.costs, tables.families, tables.layers)
    shown = [make(points) for make in first]
    shown += [*map(_routes, points), tables.settings(points)]
    return [table for table in (*shown, tables.left_out(found.left_out)) if table.body]


def _routes(point: Point) -> Table:
    seeing = [row for row in point.rows if row["base_rows"] and row["route"]]
    title = f"Routes of {point.name}"
    if not seeing:
        return Table(title, (), ())
    table = routes(seeing)
    return Table(title, table.head, table.body, table.note)


def _counts(found: Comparison) -> str:
    counts = tables.summary(found.runs, found.points)
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) + "."


def _picture(chart: Chart, path: Path, folder: Path) -> str:
    words = plain(chart.alt_text).replace("[", "(").replace("]", ")")
    return f"![{words}]({path.relative_to(folder)})"


def _write_csv(found: Comparison, path: Path) -> None:
    """Write a line for each run with all its metrics."""
    names = dict.fromkeys(name for run in found.runs for name in run.metrics)
    placed = {id(run): point for point in found.points for run in point.runs}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["folder", "outcome", "problem", "method", "keep", "seed", *names])
        for run in found.runs:
            point = placed.get(id(run))
            named = (point.method, point.keep) if point else ("", "")
            values = (run.metrics.get(name) for name in names)
            lines.writerow([run.folder, run.outcome, run.problem, *named, run.seed, *values])
