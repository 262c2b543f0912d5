"""Terminal view of what each layer kept of an image for one question."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from dpn.common.text import EMPTY_ANSWER
from dpn.reports.overlays import has_places
from dpn.reports.route import LayerChoice, Route

WIDTH = 24  # columns of a picture, where the terminal has them
_BAR = 12  # columns of a probability of 1
_GREY = 110


def print_route(route: Route, console: Console) -> None:
    """Print the images, what is left of them at each step, and below it what led to it.

    Without colours there are no pictures.
    """
    coloured = console.color_system is not None
    cells = [_cell("image", route.images if coloured else (), (), console.width)]
    for step in route.steps:
        pairs = zip(route.images, step.owners, strict=True)
        left = [pool(image, owner) for image, owner in pairs if coloured and has_places(owner)]
        cells.append(_cell(step.title, left, step.choices, console.width))
    console.print(Text.assemble(("Q: ", "bold"), route.question))
    console.print(Text.assemble(("A: ", "bold"), route.answer or EMPTY_ANSWER), end="\n\n")
    console.print(Columns(cells, padding=(0, 3)))
    for remark in route.remarks:
        console.print(Text(remark))


def _cell(
    title: str, pictures: Sequence[np.ndarray], choices: Sequence[LayerChoice], width: int
) -> Padding:
    shown = [half_blocks(picture, min(WIDTH, width)) for picture in pictures]
    chances = [line for choice in choices for line in _chances(choice)]
    return Padding(Group(Text(title, "bold"), *shown, *chances), (0, 0, 1, 0))


def _chances(choice: LayerChoice) -> list[Text]:
    """Lines of a choice, one for each option; the chosen one is bold and marked."""
    wide = max(map(len, choice.probs), default=0)
    lines = [Text(choice.title)]
    for name, prob in choice.probs.items():
        bar = "█" * round(_BAR * prob) or "▏"
        mark, style = (" ◀ chosen", "bold") if name == choice.chosen else ("", "")
        lines.append(Text(f"{name:>{wide}} {bar} {prob:.2f}{mark}", style))
    return lines


def pool(pixels: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """`[h, w, 3]` mean colour of the cells that share a row; grey where there is no row."""
    height, width = owner.shape
    cells = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
    pooled = np.full_like(cells, _GREY)
    for row in np.unique(owner[owner >= 0]):
        pooled[owner == row] = cells[owner == row].mean(0).round()
    return pooled


def half_blocks(pixels: np.ndarray, columns: int) -> Text:
    """An image `[h, w, 3]` as characters, each of which shows two pixels."""
    lines = max(1, round(columns * pixels.shape[0] / pixels.shape[1] / 2))
    size = columns, 2 * lines
    grid = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)).tolist()
    text = Text(no_wrap=True)
    for line in range(lines):
        text.append("\n" if line else "")
        for (r, g, b), (r2, g2, b2) in zip(grid[2 * line], grid[2 * line + 1], strict=True):
            text.append("▀", f"rgb({r},{g},{b}) on rgb({r2},{g2},{b2})")
    return text
