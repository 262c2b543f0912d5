"""TokenPacker: a coarse token takes in the details of its region (arXiv 2407.02392)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from dpn.projectors._reduction import ReducingProjector, Rows, by_grid
from dpn.projectors._regions import (
    RegionAttention,
    SmallLinear,
    levels_of,
    nearest_scale,
    resized,
)
from dpn.projectors.mlp import mlp
from dpn.tokens import Grid, pooled_grid, window_of_row
from dpn.vision._features import ImageGroup, Needs, VisualFeatures


class TokenPackerProjector(ReducingProjector):
    """Queries are the tower's tokens, bilinearly resized to a coarser grid; each attends to the
    tokens of several layers in its own square region; the result goes through the MLP.

    Linear layers start from a normal of standard deviation 0.02, biases at zero. A region at the
    edge of a grid that does not divide has fewer tokens, which the source leaves open.

    Args:
        scale: side of a region (2, 3 or 4 in the paper: 144, 64 or 36 of 576 tokens).
        keep: instead of the scale, the one that leaves nearly this share of the native grid.
        levels: after which shares of the tower's layers its hidden states are read (of CLIP's 24
            layers: 12, 16, 22 and 23).
        heads: of the attention.
        depth: linear layers of the MLP.
    """

    needs_keep: ClassVar[bool] = False

    def __init__(
        self,
        scale: int = 2,
        keep: float | None = None,
        levels: Sequence[float] = (0.5, 0.667, 0.917, 0.958),
        heads: int = 8,
        depth: int = 2,
        *,
        input_size: int,
        output_size: int,
        grid: Grid,
    ):
        super().__init__(keep, depth, input_size=input_size, output_size=output_size, grid=grid)
        self.scale = scale if keep is None else nearest_scale(grid, keep)
        self.needs = Needs(layers=tuple(levels))
        self.layers = mlp(input_size, output_size, depth, linear=SmallLinear)
        self.queries = nn.Sequential(
            SmallLinear(input_size, input_size, bias=False), nn.LayerNorm(input_size, eps=1e-6)
        )
        self.regions = RegionAttention(input_size, len(levels) * input_size, heads, SmallLinear)

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of a region."""
        return self.scale, self.scale

    def grid_after(self, grid: Grid) -> Grid:
        """See `Projector.grid_after`."""
        return pooled_grid(grid, self.kernel)

    def flops(self, grid: Grid, after: Grid) -> int:
        """The MLP and the attention."""
        queries = 2 * after[0] * after[1] * self.input_size**2
        return super().flops(grid, after) + queries + self.regions.flops(grid, self.kernel)

    def check(self) -> list[str]:
        """A keep outside (0, 1], or no scale."""
        problems = super().check()
        if self.scale < 1:
            problems.append(f"projector.scale={self.scale} must be at least 1.")
        return problems

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """See `Projector.forward`."""
        return self.project(by_grid(features, self._pack))

    def _pack(self, group: ImageGroup) -> list[Rows]:
        after = self.grid_after(group.grid)
        queries = self.queries(resized(group.tokens, group.grid, after))
        rows = self.regions(queries, levels_of(group.layers), group.grid, self.kernel)
        owner = window_of_row(group.grid, self.kernel)
        return [Rows(x, after, owner) for x in rows]
