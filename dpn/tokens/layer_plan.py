"""`LayerPlan`: what one decoder layer computes for visual rows; `Work`: how much that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.tokens.grids import Grid


@dataclass(frozen=True)
class LayerPlan:
    """What one layer computes for visual rows. A field that is None changes nothing.

    Attributes:
        radius: Largest distance in grid lines and in grid columns up to which a visual row attends
            to visual rows of its own image, earlier and later ones; it attends to no other visual
            rows.
        heads: Active key/value heads of visual rows. In the other heads visual rows do not attend
            and their values are zero for all rows; the attention weight on them is lost, not
            redistributed.
        ffn: Number of hidden units of the FFN, counted from the first one.
        window: Number of preceding visual rows of its own image that a visual row attends to, next
            to itself; it attends to no other visual rows.
        probe: Stride of the rows whose mean activation chooses the `ffn` hidden units of each
            image (the largest ones, in place of the first ones), see `probed_rows`.
        rows: Ascending places of the rows of each span that take part. The others skip the layer
            unchanged: no row attends to them there, nor later in that layer's cache.
        scale: fp32 factor of the FFN's output for each visual row that takes part.
        mute: Whether the values of visual rows are zero for all rows; the attention weight on them
            is lost, not redistributed.
    """

    radius: int | None = None
    heads: tuple[int, ...] | None = None
    ffn: int | None = None
    window: int | None = None
    probe: int | None = None
    rows: tuple[np.ndarray, ...] | None = None
    scale: Tensor | None = None
    mute: bool = False

    def joined(self, other: "LayerPlan | None") -> "LayerPlan":
        """Combine two plans: leave out everything that either of them leaves out.

        Raises:
            ValueError: If both plans let rows skip the layer.
        """
        if other is None:
            return self
        heads = self.heads
        if other.heads is not None:
            heads = tuple(h for h in other.heads if heads is None or h in heads)
        if self.rows is not None and other.rows is not None:
            raise SettingError(
                "Two routers of a chain let visual rows skip the same layer; let them act at"
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
            self.mute or other.mute,
        )


def _least(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known) if known else None


class Work(NamedTuple):
    """Amount of work of one layer for the visual rows of one sample.

    Attributes:
        rows: Number of visual rows.
        pairs: Number of pairs of visual rows whose attention score is computed.
        text_pairs: Number of such pairs of a visual query and a text key.
        probed: Number of rows for which all hidden units of the FFN are computed in order to choose
            among the units.
    """

    rows: int
    pairs: int
    text_pairs: int = 0
    probed: int = 0


#: Query rows in one block: under `LayerPlan.window`, scores are computed for whole blocks.
BLOCK = 64


def work_of(
    plan: LayerPlan | None, images: Sequence[Grid], before: Sequence[int] = (), text: int = 0
) -> Work:
    """Return the work of a layer for one sample.

    Args:
        plan: The layer's plan.
        images: Grids of the sample's images.
        before: Number of text rows before each image; default: none.
        text: Number of text rows in the sample.
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
    """Return how many scores are computed under `LayerPlan.radius`: those of each row with whole
    lines of the grid.
    """
    height, width = grid
    return height * width * min(height, 2 * radius + 1) * width


def pairs_in_window(window: int, rows: int) -> int:
    """Return how many scores are computed under `LayerPlan.window`, in blocks of `BLOCK` rows."""
    blocks = [min(BLOCK, rows - first) for first in range(0, rows, BLOCK)]
    return sum(block * min(rows, window + block) for block in blocks)


def probed_rows(rows: int, probe: int) -> list[int]:
    """Return the places of one in `probe` of an image's rows, evenly spaced from the first to the
    last, at least one.
    """
    count = max(1, rows // probe) if rows else 0
    return [i * (rows - 1) // max(count - 1, 1) for i in range(count)]
