"""`PackedTokens` restated with lists: each row knows its cells, its value and its column."""

from dataclasses import dataclass, field

import torch


@dataclass
class Row:
    """A row of a span: the cells that it stands for, in raster order, and its value `[D]`."""

    cells: list
    value: torch.Tensor

    @property
    def first(self):
        return min(self.cells)


@dataclass
class Image:
    """A span: lines of rows, the last row of each a newline if there is a tail."""

    column: int
    width: int
    lines: list
    tail: int

    @property
    def rows(self):
        return [row for line in self.lines for row in line]


@dataclass
class Sample:
    """Text values by column, and spans in the order of their columns."""

    left: int
    columns: int
    text: dict
    images: list = field(default_factory=list)


def reduced(rows, reduce):
    """Return the row that stands for some rows."""
    values = torch.stack([row.value for row in rows])
    value = values.amax(0) if reduce == "max" else values.mean(0)
    return Row(sorted(cell for row in rows for cell in row.cells), value)


def windows(count, size):
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def pool(image, kernel, reduce):
    """Pool the lines of an image; newlines only with newlines."""
    height, width = len(image.lines), len(image.lines[0]) if image.lines else 0
    if not width:
        return
    body = width - image.tail
    down, across = (1, kernel[0] * kernel[1]) if height == 1 else kernel
    groups = windows(body, across) + [range(body, width)] * image.tail
    image.lines = [
        [reduced([image.lines[y][x] for y in ys for x in xs], reduce) for xs in groups]
        for ys in windows(height, down)
    ]


def flat(image, rows):
    """Replace the rows of an image by one line without newlines, unless nothing changes."""
    if [row.cells for row in rows] != [row.cells for row in image.rows]:
        image.lines, image.tail = [rows], 0


def listed(samples, positions):
    """Return (sample, column, value, position) of every row.

    Args:
        samples: The samples.
        positions: Position of each column of a sample, `[..., columns]`.
    """
    out = []
    for b, sample in enumerate(samples):
        spans = {image.column: image for image in sample.images}
        column = sample.left
        while column < sample.left + sample.columns:
            image = spans.get(column)
            if image is None:
                out.append((b, column, sample.text[column]))
            else:
                out += [(b, column + row.first, row.value) for row in image.rows]
            column += 1 if image is None else image.width
    return [(*row, positions[row[0]][..., row[1] - samples[row[0]].left]) for row in out]


def row_of(samples, sample, column):
    """Return the row that represents a column: that of the column, or the last one before it."""
    first, place = sum(len(listed([s], [torch.zeros(99)])) for s in samples[:sample]), -1
    one = samples[sample]
    for image in one.images:
        inside = range(image.column, image.column + image.width)
        if column in inside and column != inside[-1]:
            passed = column - image.column
            place += sum(row.first <= passed for row in image.rows)
        elif column >= inside[-1]:
            place += len(image.rows)
    place += sum(c <= column for c in one.text)
    return first + max(place, 0)
