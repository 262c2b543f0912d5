"""Pictures of what is left of an image inside the decoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dpn.common.files import atomic_path
from dpn.common.text import one_line, shorten

SIDE = 280  # pixels of a panel
LINES = 4  # of text above the panels
_LINE_HEIGHT = 14
_WORDS, _TITLES = "Description", "Panels"  # where a picture keeps what is drawn as text
_GREY, _LINE = (110, 110, 110), (255, 0, 255)


def draw_overlay(
    pixels: np.ndarray, owners: Sequence[np.ndarray], text: Sequence[str], path: Path
) -> None:
    """Write one picture: the image as the model sees it, and again at each layer that lost rows.

    Lines separate cells of different rows; cells without a row are grey.

    Args:
        pixels: `[H, W, 3]` in 0..255.
        owners: Per layer, `[h, w]` row that holds each cell, -1 for none.
        text: Lines above the pictures: question, answer, route.
        path: PNG to write.
    """
    panels = _panels(owners)
    line, top = _LINE_HEIGHT, _LINE_HEIGHT * (LINES + 1)
    canvas = Image.new("RGB", (SIDE * len(panels), top + SIDE + line), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for number, words in enumerate(text[:LINES]):
        most = int(canvas.width / 6)
        draw.text((4, 2 + line * number), shorten(words, most), fill="black", font=font)
    for number, (title, owner) in enumerate(panels):
        left = number * SIDE
        draw.text((left + 4, top - line), title, fill="black", font=font)
        canvas.paste(panel(pixels, owner), (left, top))
    description = PngInfo()
    description.add_itxt(_WORDS, "\n".join(map(one_line, text)))
    description.add_itxt(_TITLES, "\n".join(title for title, _ in panels))
    with atomic_path(path) as temporary:
        canvas.save(temporary, "PNG", pnginfo=description)


def read_overlay(path: Path) -> tuple[dict[str, Image.Image], list[str]]:
    """Panels, by their titles, and lines of text of a picture that `draw_overlay` wrote.

    Raises:
        OSError: If the file is not a complete picture.
    """
    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        words, titles = (str(picture.info.get(k, "")).splitlines() for k in (_WORDS, _TITLES))
        top = _LINE_HEIGHT * (LINES + 1)
        boxes = ((SIDE * n, top, SIDE * (n + 1) - 6, top + SIDE - 6) for n in range(len(titles)))
        return dict(zip(titles, map(picture.crop, boxes), strict=True)), words


def _panels(owners: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray | None]]:
    """Title and owners of each panel: the image, and each layer that lost rows."""
    changed = [n for n, owner in enumerate(owners) if n == 0 or (owner != owners[n - 1]).any()]
    shown = ((f"layer {n}: {count_rows(owners[n])} rows", owners[n]) for n in changed)
    return [("image", None), *shown]


def count_rows(owner: np.ndarray) -> int:
    """Number of rows that hold cells of an image."""
    return len(np.unique(owner[owner >= 0]))


def has_places(owner: np.ndarray) -> bool:
    """Whether the cells of an image lie on a grid; some methods only number the rows they keep."""
    return owner.shape[0] > 1 or owner.size == 1


def to_pixels(image: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Turn `[3, H, W]` normalised pixels back into `[H, W, 3]` in 0..255."""
    array = np.asarray(image, dtype=np.float32).transpose(1, 2, 0)
    return ((array * np.array(std) + np.array(mean)) * 255).clip(0, 255).astype(np.uint8)


def panel(pixels: np.ndarray, owner: np.ndarray | None) -> Image.Image:
    """The image with the cells of each row drawn on it, see `draw_overlay`."""
    drawn = Image.fromarray(pixels).resize((SIDE - 6, SIDE - 6), Image.Resampling.BICUBIC)
    if owner is None:
        return drawn
    height, width = owner.shape
    edges_y, edges_x = (np.linspace(0, SIDE - 6, n + 1).astype(int) for n in (height, width))
    draw = ImageDraw.Draw(drawn)
    padded = np.pad(owner, 1, constant_values=-2)
    for y in range(height):
        for x in range(width):
            box = (edges_x[x], edges_y[y], edges_x[x + 1] - 1, edges_y[y + 1] - 1)
            own = owner[y, x]
            if own < 0:
                draw.rectangle(box, fill=_GREY)
                continue
            if padded[y, x + 1] != own:
                draw.line((box[0], box[1], box[2], box[1]), fill=_LINE)
            if padded[y + 1, x] != own:
                draw.line((box[0], box[1], box[0], box[3]), fill=_LINE)
    return drawn
