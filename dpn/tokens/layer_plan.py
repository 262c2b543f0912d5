"""What one decoder layer does for visual rows, and how much work that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dpn.tokens.grids import Grid


@dataclass(frozen=True)
class LayerPlan:
    """What one layer does for visual rows; None: all that it does for text rows.

    Attributes:
        radius: visual rows see, among visual rows, those of their own image at most so many grid
            rows and columns away, later ones included.
        heads: key/value heads in which visual rows see and show their values; elsewhere their
            attention is lost to others, not shared out among them.
        ffn: how many hidden units of the FFN, the first ones.
        window: visual rows see, among visual rows, so many of their own image right before them.
        probe: instead of the first units, those of the largest mean activation over one in so many
            rows of each image, see `probed_rows`.
        rows: of each span, ascending places of the rows that take part; the others pass the layer
            by as they are, and no row sees them there, nor later in its cache.
        scale: fp32 factor of the FFN's output, of each visual row that takes part.
    """

    radius: int | None = None
    heads: tuple[int, ...] | None = None
    ffn: int | None = None
    window: int | None = None
    probe: int | None = None
    rows: tuple[np.ndarray, ...] | None = None
    scale: Tensor | None = None

    def joined(self, other: "LayerPlan | None") -> "LayerPlan":
        """What is left where both plans leave something out.

        Raises:
            ValueError: if both let rows pass by.
        """
        if other is None:
            return self
        heads = self.heads
        if other.heads is not None:
            heads = tuple(h for h in other.heads if heads is None or h in heads)
        if self.rows is not None and other.rows is not None:
            raise ValueError(
                "Two routers of a chain let visual rows pass by the same layer; let them act at"
                " different layers."
            )
        routed = self if other.rows is None else other
        return LayerPlan(
            _least(self.radius, other.radius),
            heads,
            _least(self.ffn, other.ffn),
            _least(self.window, other.window),
            _least(self.probe, other.probe),
            routed.rows,
            routed.scale,
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known) if known else None


class Work(NamedTuple):
    """What one layer computes for the visual rows of a sample.

    Attributes:
        rows: how many there are.
        pairs: of them whose scores are computed.
        text_pairs: of a visual row that looks at a row of text.
        probed: rows for which every hidden unit of the FFN is computed, to choose among units.
    """

    rows: int
    pairs: int
    text_pairs: int = 0
    probed: int = 0


#: Rows that look through their window together: scores are computed for whole blocks.
BLOCK = 64


def work_of(
    plan: LayerPlan | None, images: Sequence[Grid], before: Sequence[int] = (), text: int = 0
) -> Work:
    """The work of a layer for a sample.

    Args:
        plan: of the layer.
        images: grids of the sample's images.
        before: rows of text that stand before each of them; default: none.
        text: all rows of text.
    """
    sizes = [height * width for height, width in images]
    rows, probed = sum(sizes), 0
    if plan is not None and plan.probe is not None and plan.ffn is not None:
        probed = sum(len(probed_rows(n, plan.probe)) for n in sizes)
    if plan is None or (plan.radius is None and plan.window is None):
        return Work(rows, rows * rows, rows * text, probed)
    if plan.radius is not None:
        pairs = sum(pairs_within(plan.radius, grid) for grid in images)
    else:
        assert plan.window is not None
        pairs = sum(pairs_in_window(plan.window, n) for n in sizes)
    return Work(rows, pairs, sum(map(mul, sizes, before)), probed)


def pairs_within(radius: int, grid: Grid) -> int:
    """Pairs whose scores are computed where rows of a grid see neighbours: whole lines of it."""
    height, width = grid
    return height * width * min(height, 2 * radius + 1) * width


def pairs_in_window(window: int, rows: int) -> int:
    """Pairs whose scores are computed where each row of an image sees a window before it."""
    blocks = [min(BLOCK, rows - first) for first in range(0, rows, BLOCK)]
    return sum(block * min(rows, window + block) for block in blocks)


def probed_rows(rows: int, probe: int) -> list[int]:
    """One in `probe` rows of an image, at least one, evenly spaced from the first to the last."""
    count = max(1, rows // probe) if rows else 0
    return [i * (rows - 1) // max(count - 1, 1) for i in range(count)]
