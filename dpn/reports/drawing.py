"""Draw charts: with plotly for a page, with matplotlib as a file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

from dpn.common.figure import drawn_to
from dpn.common.text import printable
from dpn.reports.charts import Chart

if TYPE_CHECKING:
    import plotly.graph_objects as go

#: Colours that colour-blind readers can distinguish, with a contrast of at least 3 to white and to
#: the page's dark background; combined with the marks, they make 35 different looks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B87A00", "#8A63D2", "#7A7A7A")
MARKS = ("circle", "square", "diamond", "triangle-up", "x")
_MATPLOTLIB_MARKS = "osD^X"
#: Letters of a line of the legend, and its height in inches.
_LETTERS, _LINE = 110, 0.17


def figure(chart: Chart, methods: Sequence[str]) -> "go.Figure":
    """A chart for the page, whose script adds the page's colours.

    Args:
        chart: Chart to draw.
        methods: All methods; their order determines their looks.
    """
    import plotly.graph_objects as go

    def errors(values: Sequence[float]) -> dict[str, Any] | None:
        return {"array": list(values), "thickness": 1.2, "width": 3} if any(values) else None

    steps = chart.mode == "steps"
    drawn = go.Figure(
        layout={
            "xaxis": {"title": {"text": chart.x}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": chart.y}, "rangemode": "tozero" if steps else "normal"},
            "hovermode": "closest",
            "showlegend": False,
            "height": 400,
            "margin": {"l": 60, "r": 16, "t": 16, "b": 52},
            "template": "none",
        }
    )
    for series in chart.series:
        colour, mark = look(series.method, methods, MARKS)
        dash = "solid" if series.method and chart.mode != "marks" else "dot"
        shape = "hvh" if steps else "hv" if series.method is None else "linear"
        drawn.add_scatter(
            x=list(series.x),
            y=list(series.y),
            error_x=errors(series.x_error),
            error_y=errors(series.y_error),
            name=escape(series.name),
            meta=series.method,
            # plotly reads some HTML in texts
            hovertext=["<br>".join(map(escape, wrap(text, 70))) for text in series.labels],
            hoverinfo="text",
            mode="lines+markers" if chart.marks(series) else "lines",
            line={"color": colour, "dash": dash, "shape": shape, "width": 1.8},
            marker={"color": colour, "symbol": mark, "size": 11},
        )
    return drawn


def save(chart: Chart, methods: Sequence[str], folder: Path) -> Path:
    """Write a chart as a PNG and return its path."""
    path = folder / f"{chart.name}.png"
    names = {series.method or series.name for series in chart.series}
    lines = sum(len(wrap(name, _LETTERS)) for name in names)
    with drawn_to(path, (9, 4.5 + _LINE * lines)) as figure:
        _plot(figure, chart, methods)
    return path


def _plot(figure: Any, chart: Chart, methods: Sequence[str]) -> None:
    axes = figure.subplots()
    labelled: set[str] = set()
    for series in chart.series:
        colour, mark = look(series.method, methods, _MATPLOTLIB_MARKS)
        name = series.method or series.name
        label = "" if name in labelled else fill(printable(name), _LETTERS)
        style: dict[str, Any] = {"color": colour, "label": label}
        labelled.add(name)
        if series.method is None:
            axes.step(series.x, series.y, where="post", linestyle=":", **style)
        elif chart.mode == "marks":
            style |= {"xerr": series.x_error, "yerr": series.y_error, "capsize": 3}
            axes.errorbar(series.x, series.y, marker=mark, linestyle=":", **style)
        elif chart.mode == "steps":
            axes.step(series.x, series.y, where="mid", **style)
        else:
            axes.plot(series.x, series.y, marker=mark if chart.marks(series) else "", **style)
    axes.set(xlabel=chart.x, ylabel=chart.y, title=fill(chart.title, 90))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0 if chart.mode == "steps" else None)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize="small")  # below: labels may be long


def look(method: str | None, methods: Sequence[str], marks: Sequence[str]) -> tuple[str, str]:
    """Colour and mark of a method; grey for a line without one."""
    if method is None:
        return "#888888", marks[0]
    number = methods.index(method)
    return COLOURS[number % len(COLOURS)], marks[number % len(marks)]
