"""Figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dpn.common.figure import drawn_to
from dpn.metrics import by_level, group_by, route_shares
from dpn.metrics.answers import Row
from dpn.reports.tables import by_benchmark


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write all figures for which the rows have values, and return their paths."""
    groups = by_benchmark(rows)
    files = [file for name, group in groups.items() for file in _draw(group, folder / name)]
    scored = [row for row in rows if row["base_rows"] and row["score"] is not None]
    if any(groups) and scored:
        files.append(_save(folder / "work.png", _work, scored))
    return files


def _draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the figures of one benchmark."""
    rows = [row for row in rows if row["score"] is not None]
    seeing = [row for row in rows if row["base_rows"] and row["family"] is not None]
    wanted = {"accuracy.png": _accuracy}
    if seeing:
        wanted["rows.png"] = _rows
    if any(row["route"] for row in seeing):
        wanted["routes.png"] = _routes
    if not group_by(rows, "family"):
        return []
    return [_save(folder / name, plot, seeing or rows) for name, plot in wanted.items()]


def _save(path: Path, plot, rows: Sequence[Row]) -> Path:
    with drawn_to(path, (7, 3.2)) as figure:
        plot(figure, rows)
    return path


def _accuracy(figure, rows: Sequence[Row]) -> None:
    families = group_by(rows, "family")
    means = [fmean(r["score"] for r in g) for g in families.values()]
    figure.set_figheight(max(figure.get_figheight(), 0.25 * len(families)))
    axes = figure.subplots()
    bars = axes.barh(list(map(str, families)), means)
    axes.bar_label(bars, fmt="%.2f")
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel="accuracy", title="Accuracy by family")


def _work(figure, rows: Sequence[Row]) -> None:
    """Plot accuracy against the share of visual work, a point for each category."""
    axes = figure.subplots()
    for number, (name, group) in enumerate(by_benchmark(rows).items()):
        parts = list(group_by(group, "family").values()) or [group]
        shares = [fmean(row["visual_macs_ratio"] for row in part) for part in parts]
        means = [fmean(row["score"] for row in part) for part in parts]
        style = {"marker": "os^vD"[number // 10 % 5], "color": f"C{number % 10}"}
        axes.scatter(shares, means, label=name or "held out", **style)
    axes.set(xlabel="share of visual MACs", ylabel="accuracy", ylim=(-0.03, 1.03))
    axes.set_title("Accuracy and visual work of each category")
    figure.legend(loc="outside right upper")


def _rows(figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for family, group in group_by(rows, "family").items():
        layers = range(len(group[0]["rows"]))
        means = [fmean(row["rows"][n] for row in group) for n in layers]
        axes.step(layers, means, where="mid", label=family)
    axes.set(
        ylim=(0, None), xlabel="layer", ylabel="visual rows", title="Rows that enter each layer"
    )
    axes.legend()


def _routes(figure, rows: Sequence[Row]) -> None:
    layers = list(route_shares(rows))
    groups = {
        f"{family} {level}".strip(): part
        for family, group in group_by(rows, "family").items()
        for level, part in (by_level(group) or {"": group}).items()
    }
    figure.set_figwidth(max(figure.get_figwidth(), 1.5 * len(layers)))
    experts = sorted({expert for row in rows for expert in row["route"].values()})
    for axes, layer in zip(
        figure.subplots(1, len(layers), sharey=True, squeeze=False)[0], layers, strict=True
    ):
        below = [0.0] * len(groups)
        for number, expert in enumerate(experts):
            shares = [route_shares(g).get(layer, {}).get(expert, 0.0) for g in groups.values()]
            axes.barh(list(groups), shares, left=below, label=expert, color=f"C{number}")
            below = [b + s for b, s in zip(below, shares, strict=True)]
        axes.set(title=f"layer {layer}", xlim=(0, 1), xlabel="share of prompts")
        axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", title="choice")
