"""Content of the charts of a comparison; `dpn.reports.drawing` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, stdev
from typing import Any, Literal

from dpn.reports.points import ACCURACY, SHARE, Point

TIME = "time/prefill_ms"
CURVES = {
    "loss/language": "Language loss of training batches",
    "val/loss": "Language loss of held-out data",
    SHARE: "Share of visual MACs of training batches",
}


@dataclass(frozen=True)
class Series:
    """Points of one method.

    Attributes:
        method: Method whose look the points have; None for a line that belongs to no method.
        name: Name of the line.
        x: X values.
        y: Y values.
        labels: Text of each point, shown when the mouse hovers over it.
        x_error: Standard deviation over seeds of the x values; empty: none.
        y_error: Standard deviation over seeds of the y values; empty: none.
    """

    method: str | None
    name: str
    x: Sequence[float]
    y: Sequence[float]
    labels: Sequence[str]
    x_error: Sequence[float] = ()
    y_error: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """Content of a chart.

    Attributes:
        name: Name of its file.
        title: Title of the chart.
        x: Title of the x axis.
        y: Title of the y axis.
        series: Series in drawing order.
        mode: Joined marks, a line, or steps.
        alt_text: Description for screen readers.
    """

    name: str
    title: str
    x: str
    y: str
    series: Sequence[Series]
    mode: Literal["marks", "line", "steps"]
    alt_text: str

    def marks(self, series: Series) -> bool:
        """Whether to mark the points of a series; a line of one point would be invisible."""
        return series.method is not None and (self.mode == "marks" or len(series.x) == 1)


def charts(points: Sequence[Point]) -> list[Chart]:
    """All charts for which the points, of one data set, have values."""
    drawn = [
        _trade(points, SHARE, "accuracy_macs", "visual MACs", "share of visual MACs"),
        _trade(points, TIME, "accuracy_time", "measured time", "ms to the first token, per prompt"),
        _kept(points),
        *(_curves(points, metric, title) for metric, title in CURVES.items()),
    ]
    return [chart for chart in drawn if chart.series]


def _trade(points: Sequence[Point], cost: str, name: str, words: str, axis: str) -> Chart:
    """Accuracy against a cost: a line for each method, and the front of the best points."""
    having = [p for p in points if p.values(ACCURACY) and p.values(cost)]
    front = _front([(fmean(p.values(cost)), fmean(p.values(ACCURACY)), p.name) for p in having])
    series = [_spread_out(group, cost) for group in _by_method(having)]
    if len(front) > 1:
        x, y, names = zip(*front, strict=True)
        series.insert(0, Series(None, "no method is better in both", x, y, names))
    best = "; ".join(f"{who}: {right:.3f} at {spent:.3g}" for spent, right, who in front)
    alt_text = f"Accuracy against {axis}. Not beaten in both: {best}."
    return Chart(name, f"Accuracy against {words}", axis, "accuracy", series, "marks", alt_text)


def _spread_out(points: Sequence[Point], cost: str) -> Series:
    """Points of a method in the order of their cost, with the spread over seeds."""
    points = sorted(points, key=lambda point: fmean(point.values(cost)))
    columns = [[point.values(metric) for point in points] for metric in (cost, ACCURACY)]
    (x, x_error), (y, y_error) = (
        ([fmean(v) for v in column], [stdev(v) if len(v) > 1 else 0.0 for v in column])
        for column in columns
    )
    labels = [
        f"{p.name}: accuracy {right:.3f} ± {off:.3f}, {spent:.3g}, seeds: {len(p.runs)}"
        for p, right, off, spent in zip(points, y, y_error, x, strict=True)
    ]
    return Series(points[0].method, points[0].method, x, y, labels, x_error, y_error)


def _front(found: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Points without another that is cheaper and at least as accurate."""
    front: list[tuple[float, float, str]] = []
    for cost, right, name in sorted(found, key=lambda item: (item[0], -item[1])):
        if not front or right > front[-1][1]:
            front.append((cost, right, name))
    return front


def _kept(points: Sequence[Point]) -> Chart:
    series = []
    for point in points:
        kept = kept_by_layer(point)
        labels = [f"{point.name}: {share:.3f} enter layer {n}" for n, share in enumerate(kept)]
        if kept:
            series.append(Series(point.method, point.name, [*range(len(kept))], kept, labels))
    ends = "; ".join(f"{line.name}: {line.y[-1]:.3f}" for line in series)
    alt_text = f"Share of the image's rows that enters each layer. At the last layer {ends}."
    axis = "share of the tower's tokens"
    return Chart("kept", "Visual rows kept by layer", "layer", axis, series, "steps", alt_text)


def kept_by_layer(point: Point) -> list[float]:
    """Share of the tower's tokens that enters each layer, mean over seeds."""
    names = {name for run in point.runs for name in run.metrics if name.startswith("router/kept/")}
    shares = (point.mean(f"router/kept/{layer}") for layer in range(len(names)))
    return [share for share in shares if share is not None]


def _curves(points: Sequence[Point], metric: str, title: str) -> Chart:
    """Chart of a logged metric, with a line for each run."""
    series = []
    for point in points:
        for run in point.runs:
            name = f"{point.name} seed={run.seed}"
            line = [(row["step"], row[metric]) for row in run.curves if _has(row, metric)]
            if line:
                x, y = zip(*line, strict=True)
                labels = [f"{name}, step {step}: {value:.4g}" for step, value in line]
                series.append(Series(point.method, name, x, y, labels))
    ends = "; ".join(f"{line.name}: {line.y[-1]:.4g}" for line in series)
    alt_text = f"{title} by step. At the end {ends}."
    name = "curve_" + metric.replace("/", "_")
    return Chart(name, title, "step", metric, series, "line", alt_text)


def _has(row: Any, metric: str) -> bool:
    values = [row.get(name) for name in ("step", metric)]
    return all(isinstance(value, int | float) and isfinite(value) for value in values)


def _by_method(points: Sequence[Point]) -> list[list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.method, []).append(point)
    return list(groups.values())
