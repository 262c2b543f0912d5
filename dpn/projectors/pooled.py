"""Pooling before layer 0: the baseline of early compression."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch.nn.functional as F

from dpn.common.ranges import Layers
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid
from dpn.projectors.base import ProjectorSizes
from dpn.projectors.mlp import mlp_flops
from dpn.tokens import Grid, pool_grid, pooled_grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class PooledProjector(ReducingProjector):
    """Applies the MLP, then pools its tokens.

    Args:
        kernel: Kernel [h, w], which is also the stride.
        keep: Share of the tower's tokens to keep; if given, adaptive pooling to the smallest grid
            with at least this share replaces the kernel. The share of visual MACs is nearly the
            same.
        reduce: `max` or `avg`.
        depth: Number of linear layers of the MLP.
    """

    needs_keep: ClassVar[bool] = False

    def __init__(
        self,
        kernel: Sequence[int] = (2, 2),
        keep: float | None = None,
        reduce: Literal["max", "avg"] = "max",
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.kernel, self.reduce = (kernel[0], kernel[1]), reduce

    def grid_after(self, grid: Grid) -> Grid:
        if self.keep is None:
            return pooled_grid(grid, self.kernel)
        return smallest_grid(grid, self.keep)

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, grid[0] * grid[1])

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return by_grid(self.project(features), self._pool)

    def _pool(self, group: ImageGroup) -> list[Rows]:
        grid = self.grid_after(group.grid)
        rows = group.tokens.unflatten(1, group.grid)  # [S, h, w, D]
        if self.keep is None:
            rows = pool_grid(rows, self.kernel, self.reduce)
            owner = window_of_row(group.grid, self.kernel)
        else:
            pool = F.adaptive_max_pool2d if self.reduce == "max" else F.adaptive_avg_pool2d
            rows = pool(rows.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
            owner = nearest_row(group.grid, grid)
        return [Rows(x, grid, owner) for x in rows.flatten(1, 2)]

    def check(self) -> list[str]:
        problems = super().check()
        fits = [1 <= k <= g for k, g in zip(self.kernel, self.grid, strict=True)]
        if not all(fits):
            problems.append(
                f"projector.kernel={list(self.kernel)} must lie between [1, 1] and the vision"
                " tower's grid"
                f" {list(self.grid)}."
            )
        return problems


def nearest_row(grid: Grid, after: Grid) -> np.ndarray:
    """Return the cell of a coarser grid that each cell of a grid lies in, `[h * w]`."""
    row, column = (np.arange(n) * m // n for n, m in zip(grid, after, strict=True))
    return (row[:, None] * after[1] + column).flatten()


def smallest_grid(grid: Grid, keep: float) -> Grid:
    """Return the smallest grid with at least a share `keep` of the cells.

    Of equally small grids, it is the one whose aspect ratio is closest.
    """
    height, width = grid
    candidates = [
        (h, min(width, math.ceil(keep * height * width / h - 1e-9))) for h in range(1, height + 1)
    ]
    enough = [c for c in candidates if c[0] * c[1] >= keep * height * width - 1e-9]
    return min(enough, key=lambda c: (c[0] * c[1], abs(math.log((c[0] * width) / (c[1] * height)))))
