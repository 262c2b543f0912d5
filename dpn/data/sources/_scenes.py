"""Contents of the mosaics of handwritten digits, and the questions about them.

A mosaic is a grid of small cells, each empty or with a handwritten digit (scikit-learn's
`load_digits`), under a tint for each quadrant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

DIGIT = 8  # height and width in pixels of a digit in load_digits
INKS = 16  # largest grey level
VAL_DIGITS = 397  # digit images for validation only; training has the other 1,400
PLACES = ("top left", "top right", "bottom left", "bottom right")
TINTS = {
    "red": (1, 0.25, 0.25),
    "green": (0.25, 1, 0.25),
    "blue": (0.35, 0.35, 1),
    "yellow": (1, 1, 0.2),
}
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
NUMBERS = f"{_NUMBERS} fifteen sixteen".split()


@dataclass(frozen=True)
class Scene:
    """Content of a mosaic.

    Attributes:
        tints: Name of each quadrant's tint, in the order of `PLACES`.
        images: Index of the digit image in each cell, `[side, side]`; -1: none.
    """

    tints: tuple[str, ...]
    images: np.ndarray

    def quadrant(self, number: int) -> np.ndarray:
        """Return the cells of a quadrant, `[side / 2, side / 2]`."""
        half = len(self.images) // 2
        top, left = (half * place for place in divmod(number, 2))
        return self.images[top : top + half, left : left + half]


class Exchange(NamedTuple):
    """A question, its answer, and the number of digits that the answer depends on."""

    question: str
    answer: str
    difficulty: int


@dataclass(frozen=True)
class Family:
    """Questions of one level of detail.

    Attributes:
        full: Whether all cells have a digit, or only a few scattered ones.
        ask: Function that returns the turns about a scene, given the number of questions about
            quadrants; no answer reveals another.
    """

    full: bool
    ask: Callable[[Scene, int, np.random.Generator], list[Exchange]]


def ask_tints(scene: Scene, turns: int, rng: np.random.Generator) -> list[Exchange]:
    """Ask for the colours of the first quadrants, in reading order."""
    return [
        Exchange(f"What colour is the {place} quadrant?", tint, 0)
        for place, tint in islice(zip(PLACES, scene.tints, strict=True), turns)
    ]


def ask_numbers(scene: Scene, turns: int, rng: np.random.Generator) -> list[Exchange]:
    """Ask for the numbers of digits in the first quadrants, in reading order."""
    exchanges = []
    for number, place in enumerate(PLACES[:turns]):
        count = int((scene.quadrant(number) >= 0).sum())
        question = f"How many digits are in the {place} quadrant?"
        exchanges.append(Exchange(question, NUMBERS[count], count))
    return exchanges


def ask_digits(scene: Scene, turns: int, rng: np.random.Generator) -> list[Exchange]:
    """Ask for the first 2, 4, 6 ... rows; in half of the conversations also for the rest."""
    side = len(scene.images)
    height = 2 * int(rng.integers(1, side // 2 + 1))
    asked = [(f"Read the first {height} rows.", scene.images[:height])]
    if height < side and rng.integers(2):
        asked.append(("Read the rest.", scene.images[height:]))
    return [Exchange(question, read(rows), rows.size) for question, rows in asked]


FAMILIES = {
    "coarse": Family(True, ask_tints),
    "medium": Family(False, ask_numbers),
    "fine": Family(True, ask_digits),
}


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the ink `[n, 8, 8]`, from 0 to 16, and the labels `[n]` of all digit images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target


def split_digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the digit images of training and of validation."""
    order = np.random.default_rng(seed).permutation(len(load_digits()[1]))
    return order[VAL_DIGITS:], order[:VAL_DIGITS]


def draw(
    rng: np.random.Generator, pool: np.ndarray, side: int, counts: Sequence[int] | None
) -> Scene:
    """Draw a scene with digits of the pool, in every cell or scattered over each quadrant.

    Args:
        rng: Random number generator.
        pool: Indices of the digit images to draw from.
        side: Number of cells along a side.
        counts: Possible numbers of digits in a quadrant; None: a digit in every cell.
    """
    tints = tuple(str(rng.choice(list(TINTS))) for _ in PLACES)
    scene = Scene(tints, rng.choice(pool, (side, side)))
    if counts is not None:
        for number in range(len(PLACES)):
            cells = scene.quadrant(number)
            kept = int(rng.choice(counts))
            empty = rng.permutation(cells.size)[kept:]
            cells[np.unravel_index(empty, cells.shape)] = -1
    return scene


def paint(scene: Scene, tint: float) -> Image.Image:
    """Draw the image: white ink on the tints of the quadrants."""
    inks, _ = load_digits()
    side = len(scene.images)
    ink = np.where((scene.images >= 0)[..., None, None], inks[scene.images], 0) / INKS
    ink = ink.swapaxes(1, 2).reshape(side * DIGIT, side * DIGIT, 1)
    colours = np.array([TINTS[name] for name in scene.tints]).reshape(2, 2, 3)
    half = side * DIGIT // 2
    ground = 255 * tint * colours.repeat(half, 0).repeat(half, 1)
    return Image.fromarray((ground + ink * (255 - ground)).round().astype(np.uint8))


def read(images: np.ndarray) -> str:
    """Return the digits of some cells in reading order."""
    _, labels = load_digits()
    return "".join(map(str, labels[images[images >= 0]]))
