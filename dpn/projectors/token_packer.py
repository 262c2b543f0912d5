"""TokenPacker (arXiv 2407.02392): coarse tokens that attend to the details of their region."""

from collections.abc import Sequence
from typing import Unpack

from torch import nn

from dpn.common.ranges import AtLeast1, Layers
from dpn.projectors._reduction import Rows, by_grid
from dpn.projectors._regions import (
    RegionAttention,
    RegionProjector,
    SmallLinear,
    levels_of,
    resized,
)
from dpn.projectors.base import ProjectorSizes
from dpn.projectors.mlp import mlp
from dpn.tokens import Grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class TokenPackerProjector(RegionProjector):
    """Resizes the tower's tokens to a coarser grid, lets them attend to their region, then the MLP.

    The queries are the tower's tokens, resized bilinearly; each attends to the tokens of several
    layers in its own square region. Linear layers are initialised from a normal of standard
    deviation 0.02, biases with zero. Regions at the edge of a grid that the scale does not divide
    have fewer tokens; the paper does not cover this case.

    Args:
        scale: Side of a region (2, 3 or 4 in the paper: 144, 64 or 36 of 576 tokens).
        keep: Target share of the native grid's tokens; if given, it determines the scale.
        levels: Places of the layers whose hidden states are read, as shares of the tower's depth
            (of CLIP's 24 layers: 12, 16, 22 and 23).
        heads: Number of attention heads.
        depth: Number of linear layers of the MLP.
    """

    def __init__(
        self,
        scale: AtLeast1 = 2,
        keep: float | None = None,
        levels: Sequence[float] = (0.5, 0.667, 0.917, 0.958),
        heads: AtLeast1 = 8,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(scale, levels, keep, depth, **sizes)
        width = self.input_size
        self.layers = mlp(width, self.output_size, depth, linear=SmallLinear)
        self.queries = nn.Sequential(
            SmallLinear(width, width, bias=False), nn.LayerNorm(width, eps=1e-6)
        )
        self.regions = RegionAttention(width, len(levels) * width, heads, SmallLinear)

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs of the MLP and of the attention."""
        queries = 2 * after[0] * after[1] * self.input_size**2
        return super().flops(grid, after) + queries + self.regions.flops(grid, self.kernel)

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return self.project(by_grid(features, self._pack))

    def _pack(self, group: ImageGroup) -> list[Rows]:
        after = self.grid_after(group.grid)
        queries = self.queries(resized(group.tokens, group.grid, after))
        rows = self.regions(queries, levels_of(group.layers), group.grid, self.kernel)
        owner = window_of_row(group.grid, self.kernel)
        return [Rows(x, after, owner) for x in rows]
