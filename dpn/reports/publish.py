"""The report of a comparison: a self-contained page, report.md with its figures, and runs.csv."""

import csv
from dataclasses import replace
from pathlib import Path

from dpn.common.files import atomic_path, write_text
from dpn.common.table import Table
from dpn.common.text import markdown_image, spreadsheet_cell
from dpn.reports import comparison_tables as tables
from dpn.reports.charts import Chart, charts
from dpn.reports.comparison import Comparison, DataSet
from dpn.reports.drawing import save
from dpn.reports.html import write_page
from dpn.reports.points import Point
from dpn.reports.tables import routes


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write report.html, report.md with its figures, and runs.csv; return the path of the page."""
    drawn = {data_set.number: _charts(data_set) for data_set in found.data_sets}
    shown = [chart for own in drawn.values() for chart in own]
    figures = [save(chart, found.methods, folder / "figures") for chart in shown]
    parts = [
        "# Comparison of runs",
        _counts(found),
        *(table.markdown().strip() for table in all_tables(found)),
        *(_picture(*pair, folder) for pair in zip(shown, figures, strict=True)),
    ]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    write_csv(found, folder / "runs.csv")
    return write_page(found, drawn, folder / "report.html")


def all_tables(found: Comparison) -> list[Table]:
    """All tables that are not empty."""
    shown = []
    for data_set in found.data_sets:
        points = data_set.points
        first = (tables.methods, tables.budgets, tables.costs, tables.families, tables.layers)
        own = [*(make(points) for make in first), *map(_routes, points), tables.settings(points)]
        shown += [replace(table, title=data_set.title(table.title)) for table in own]
    return [table for table in (*shown, tables.left_out(found.left_out)) if table.body]


def _charts(data_set: DataSet) -> list[Chart]:
    return [
        replace(chart, name=chart.name + data_set.suffix, title=data_set.title(chart.title))
        for chart in charts(data_set.points)
    ]


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
    return markdown_image(chart.alt_text, path.relative_to(folder).as_posix())


def write_csv(found: Comparison, path: Path) -> None:
    """Write a line for each run with all its metrics; no cell is a formula."""
    names = dict.fromkeys(name for run in found.runs for name in run.metrics)
    placed = {
        id(run): (point.method, point.keep, data_set.label)
        for data_set in found.data_sets
        for point in data_set.points
        for run in point.runs
    }
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        head = [
            "folder",
            "outcome",
            "problem",
            "method",
            "keep",
            "seed",
            "data set",
            "metric",
            *names,
        ]
        lines.writerow(map(spreadsheet_cell, head))
        for run in found.runs:
            method, keep, data_set = placed.get(id(run), ("", "", ""))
            values = (run.metrics.get(name) for name in names)
            what = (str(run.folder), run.outcome, run.problem, method, keep, run.seed)
            lines.writerow(map(spreadsheet_cell, (*what, data_set, run.metric, *values)))
