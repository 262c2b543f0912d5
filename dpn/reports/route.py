"""Figure of what each layer kept of an image for one question, and with which probabilities."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpn.common.figure import drawn_to
from dpn.reports.overlays import has_places, panel

COLUMNS = 5  # pictures in a line
_CHOSEN, _OTHER = "#0b3c6f", "#c3ccd6"  # apart by lightness, so also in print


@dataclass(frozen=True)
class LayerChoice:
    """What a router chose at a layer.

    Attributes:
        title: name of the layer.
        probs: probability of each option.
        chosen: chosen option; None if each row chooses for itself.
    """

    title: str
    probs: Mapping[str, float]
    chosen: str | None = None


@dataclass(frozen=True)
class RouteStep:
    """What is left of the images from some layer on.

    Attributes:
        title: that layer, and the number of rows.
        owners: per image, `[h, w]` row that holds each cell, -1 for none.
        choices: choices that led to it.
    """

    title: str
    owners: Sequence[np.ndarray]
    choices: Sequence[LayerChoice] = ()


@dataclass(frozen=True)
class Route:
    """The route of one question through the decoder.

    Attributes:
        question: in words.
        answer: in words.
        remarks: sentences about the route as a whole.
        images: `[H, W, 3]` in 0..255, as the model sees them.
        steps: steps in the order of the layers, at least one.
    """

    question: str
    answer: str
    remarks: Sequence[str]
    images: Sequence[np.ndarray]
    steps: Sequence[RouteStep]


def draw_route(route: Route, path: Path) -> None:
    """Write a PNG: the images, what is left of them at each step, and below it what led to it."""
    cells = 1 + len(route.steps)
    columns = min(cells, COLUMNS)
    lines = -(-cells // columns)
    width = max(2.6 * columns * len(route.images), 7.0)
    head = _lines(f"Q: {route.question}", 11 * width) + _lines(f"A: {route.answer}", 11 * width)
    most = max(sum(len(c.probs) + 1 for c in step.choices) for step in route.steps)
    bars = 0.25 + 0.2 * most
    foot = [line for text in route.remarks for line in _lines(text, 13 * width)]
    height = 0.3 * len(head) + lines * (3.1 + bars) + 0.2 * len(foot)
    with drawn_to(path, (width, height), dpi=150) as figure:
        ratios = [2.8, bars] * lines
        axes = figure.subplots(2 * lines, columns, height_ratios=ratios, squeeze=False)
        for place in axes.flat:
            place.axis("off")
        _show(axes[0, 0], "image", route.images, None)
        for number, step in enumerate(route.steps, 1):
            line, column = divmod(number, columns)
            _show(axes[2 * line, column], step.title, route.images, step.owners)
            _chances(axes[2 * line + 1, column], step.choices)
        figure.suptitle("\n".join(head), x=0.01, ha="left", fontsize=12, parse_math=False)
        figure.supxlabel("\n".join(foot), x=0.01, ha="left", fontsize=9, parse_math=False)


def _lines(text: str, letters: float) -> list[str]:
    """Lines of at most `letters` letters, without characters that no font can show."""
    return textwrap.wrap("".join(c if c.isprintable() else " " for c in text), int(letters))


def _show(
    axes: Any, title: str, images: Sequence[np.ndarray], owners: Sequence[np.ndarray] | None
) -> None:
    """The images side by side, with what is left of them where that has places."""
    axes.set_title(title, fontsize=10)
    if owners is not None and not all(map(has_places, owners)):
        axes.text(0.5, 0.5, "its rows have no place\nin the image", ha="center", va="center")
        return
    cells = [None] * len(images) if owners is None else owners
    pairs = zip(images, cells, strict=True)
    drawn = [np.asarray(panel(image, owner)) for image, owner in pairs]
    gap = ((0, 0), (0, 6), (0, 0))
    axes.imshow(np.concatenate([np.pad(one, gap, constant_values=255) for one in drawn], 1))


def _chances(axes: Any, choices: Sequence[LayerChoice]) -> None:
    """Bars of probabilities, the chosen option dark and marked; one choice below another."""
    place = 0
    for choice in choices:
        axes.text(0, place, choice.title, va="center", fontsize=9, weight="bold")
        for name, prob in choice.probs.items():
            place += 1
            is_chosen = name == choice.chosen
            axes.barh(place, prob, color=_CHOSEN if is_chosen else _OTHER, height=0.8)
            mark = "  ◀ chosen" if is_chosen else ""
            axes.text(prob + 0.02, place, f"{prob:.2f}{mark}", va="center", fontsize=9)
            axes.text(-0.03, place, name, va="center", ha="right", fontsize=9)
        place += 1
    axes.set(xlim=(-0.25, 1.45), ylim=(max(place, 1) - 0.4, -0.6))
