"""Draw what each layer kept of an image for each question, and with which probabilities."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpn.common.figure import drawn_to
from dpn.common.text import EMPTY_ANSWER
from dpn.reports.overlays import has_places, panel

COLUMNS = 5  # pictures in a line
_SIDE = 2.1  # inches of a picture
_LETTERS = 14  # that fit into an inch of the smaller text
_CHOSEN, _OTHER = "#0b3c6f", "#c3ccd6"  # apart by lightness, so also in print


@dataclass(frozen=True)
class LayerChoice:
    """A router's decision at one layer.

    Attributes:
        title: Which layer.
        probs: Probability of each option.
        chosen: The chosen option; None if every row decides for itself.
    """

    title: str
    probs: Mapping[str, float]
    chosen: str | None = None


@dataclass(frozen=True)
class RouteStep:
    """What is left of the images from one layer to the next change.

    Attributes:
        title: First layer of the step, and its number of visual rows.
        owners: For each image `[h, w]`, the row that holds each cell; -1 if no row does.
        choices: Decisions that led to the step.
    """

    title: str
    owners: Sequence[np.ndarray]
    choices: Sequence[LayerChoice] = ()


@dataclass(frozen=True)
class Route:
    """One question's way through the decoder.

    Attributes:
        question: Text of the question.
        answer: The model's answer.
        remarks: Sentences about the whole route.
        images: `[H, W, 3]` in 0..255, as the model sees them.
        steps: Steps in the order of the layers, at least one.
    """

    question: str
    answer: str
    remarks: Sequence[str]
    images: Sequence[np.ndarray]
    steps: Sequence[RouteStep]


def draw_routes(routes: Sequence[Route], path: Path) -> None:
    """Write a PNG with one block for each question, one above another.

    A block shows the images, what is left of them at each step, and below each step the
    probabilities that led to it.
    """
    columns = min(max(1 + len(route.steps) for route in routes), COLUMNS)
    width = max(_SIDE * columns * max(len(route.images) for route in routes), 7.0)
    blocks = [_Block(route, columns, width) for route in routes]
    heights = [block.height for block in blocks]
    with drawn_to(path, (width, sum(heights)), dpi=150) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)
        for block, part in zip(blocks, parts.flat, strict=True):
            block.draw(part)


class _Block:
    """The part of a figure that shows one route.

    Args:
        route: The route to show.
        columns: Pictures in a line.
        width: Inches.

    Attributes:
        height: Inches.
    """

    def __init__(self, route: Route, columns: int, width: float) -> None:
        self.route, self.columns = route, columns
        letters = 0.8 * _LETTERS * width
        self.head = [
            line
            for text in (f"Q: {route.question}", f"A: {route.answer or EMPTY_ANSWER}")
            for line in _lines(text, letters)
        ]
        self.foot = [line for text in route.remarks for line in _lines(text, _LETTERS * width)]
        self.lines = -(-(1 + len(route.steps)) // columns)
        bars = max(sum(len(c.probs) + 1 for c in step.choices) for step in route.steps)
        self.ratios = [_SIDE, 0.25 + 0.19 * bars]
        text = 0.24 * len(self.head) + 0.18 * len(self.foot)
        self.height = self.lines * (sum(self.ratios) + 0.4) + text

    def draw(self, part: Any) -> None:
        """Fill a part of a figure."""
        ratios = self.ratios * self.lines
        axes = part.subplots(2 * self.lines, self.columns, height_ratios=ratios, squeeze=False)
        for place in axes.flat:
            place.axis("off")
        _show(axes[0, 0], "image", self.route.images, None)
        for number, step in enumerate(self.route.steps, 1):
            line, column = divmod(number, self.columns)
            _show(axes[2 * line, column], step.title, self.route.images, step.owners)
            _chances(axes[2 * line + 1, column], step.choices)
        left = {"x": 0.01, "ha": "left", "parse_math": False}
        part.suptitle("\n".join(self.head), fontsize=12, **left)
        part.supxlabel("\n".join(self.foot), fontsize=9, **left)


def _lines(text: str, letters: float) -> list[str]:
    """Wrap a text after at most this many letters, without characters that no font can show."""
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
            words = axes.text(prob + 0.03, place, f"{prob:.2f}{mark}", va="center", fontsize=9)
            words.set_in_layout(False)  # the pictures of all questions stay in line
            axes.text(-0.04, place, name, va="center", ha="right", fontsize=9)
        place += 1
    axes.set(xlim=(-0.3, 2.4), ylim=(max(place, 1) - 0.4, -0.6))
