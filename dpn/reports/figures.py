"""The figures of a run."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from dpn.files import atomic_path
from dpn.metrics import by, by_level, route_shares
from dpn.metrics.answers import Row


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write all figures that the rows allow; returns their files."""
    seeing = [row for row in rows if row["base_rows"] and row["family"] is not None]
    wanted = {"accuracy.png": _accuracy}
    if seeing:
        wanted["rows.png"] = _rows
    if any(row["route"] for row in seeing):
        wanted["routes.png"] = _routes
    if not by(rows, "family"):
        return []
    return [_save(folder / name, plot, seeing or rows) for name, plot in wanted.items()]


def _save(path: Path, plot, rows: Sequence[Row]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no display, no global state
    plot(figure, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def _accuracy(figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    families = by(rows, "family")
    bars = axes.bar(list(families), [fmean(r["score"] for r in g) for g in families.values()])
    axes.bar_label(bars, fmt="%.2f")
    axes.set(ylim=(0, 1.1), ylabel="accuracy", title="Accuracy by family")


def _rows(figure, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for family, group in by(rows, "family").items():
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
        for family, group in by(rows, "family").items()
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
