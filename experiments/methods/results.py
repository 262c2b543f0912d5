"""Read and write the rows of the study; make its table and its figure."""

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from methods import KEEPS, METHODS, MORE

from dpn.common.figure import drawn_to
from dpn.common.table import markdown
from dpn.metrics.statistics import spread

HERE = Path(__file__).parent
RESULTS, SPEED = HERE / "results.jsonl", HERE / "speed.jsonl"
FAMILIES = ("coarse", "medium", "fine")


def table() -> str:
    """Make the table, with a line for each method, `applied` or `trained`, and target."""
    groups, speed = _groups(), {(row["method"], row["keep"]): row for row in read(SPEED)}
    head = ["method", "acts", "", "asked", "seeds", *FAMILIES, "share reached", "prefill FLOPs"]
    lines = [[*head, "timed at: FLOPs", "time"]]
    for (name, how, keep), rows in groups.items():
        asked = "" if keep is None else str(keep)
        line = [f"`{name}`", METHODS[name].acts, how, asked, str(len(rows))]
        if rows[0]["status"] == "unreachable":
            lines.append([*line, "unreachable", *[""] * 6])
            continue
        cells = [[r["accuracy"][f] for r in rows] for f in FAMILIES]
        cells += [[r["share"] for r in rows], [r["flops"] for r in rows]]
        at = speed.get((name, keep))
        lines.append([*line, *map(spread, cells), *(_timed(at) if at else ("", ""))])
    return markdown(lines)


def draw() -> None:
    """Plot accuracy against the ratio reached, by part (rows) and applied or trained (columns)."""
    with drawn_to(HERE / "accuracy.png", (12, 9), dpi=110) as figure:
        _plot(figure)


def _plot(figure: Any) -> None:
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, part in zip(panels, ("router", "projector"), strict=True):
        names = [n for n, m in METHODS.items() if n == "none" or m.part == part]
        for axes, how in zip(line, ("applied", "trained"), strict=True):
            for number, name in enumerate(names):
                points = _points(name, how)
                style = {"color": f"C{number % 10}", "marker": "os^vD"[number // 10 % 5]}
                if name.startswith(("random", "downsample", "none")):
                    style |= {"color": "black", "marker": "*x+"[number % 3], "linestyle": ":"}
                axes.plot(*points, label=name, markersize=7, **style)
            where = "inside the decoder" if part == "router" else "before the decoder"
            titles = {"applied": "to the model of router=none", "trained": "60 more steps with it"}
            axes.set(title=f"{where}, {how}: {titles[how]}", xlim=(0.15, 1.03), ylim=(0, 1.03))
            axes.grid(alpha=0.3)
        line[0].set_ylabel("accuracy, mean of the families")
        line[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axes in panels[1]:
        axes.set_xlabel("share of visual MACs reached")


Key = tuple[str, str, float | None]


def _groups() -> dict[Key, list[dict[str, Any]]]:
    """Group the rows of all seeds by method, `applied` or `trained`, and target."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in read(RESULTS):
        found.setdefault((row["method"], row["how"], row["keep"]), []).append(row)
    keys = itertools.product(METHODS, ("applied", "trained"), (None, *sorted((*KEEPS, MORE))))
    return {key: found[key] for key in keys if key in found}


def _points(name: str, how: str) -> tuple[list[float], list[float]]:
    """Return the ratios and accuracies of a method, averaged over seeds."""
    points = []
    for (method, way, _), rows in _groups().items():
        if (method, way) == (name, how) and rows[0]["status"] == "finished":
            right = fmean(fmean(r["accuracy"].values()) for r in rows)
            points.append((fmean(r["share"] for r in rows), right))
    points.sort()
    return [share for share, _ in points], [right for _, right in points]


def _timed(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["interval"]
    return f"{row['flops']:.2f}", f"{row['time']:.2f} [{low:.2f}, {high:.2f}]"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
