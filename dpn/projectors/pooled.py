"""Pooling before layer 0: the early-compression baseline that a pyramid has to beat."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from dpn.projectors.base import Projector
from dpn.projectors.mlp import mlp, mlp_flops
from dpn.tokens import Grid, pool_grid, pooled_grid
from dpn.vision._features import VisualFeatures


class PooledProjector(Projector):
    """The MLP projector, then pooling of its tokens to fewer.

    Args:
        kernel: [h, w], kernel = stride.
        keep: instead of the kernel, the share of the tower's tokens that is left: the smallest grid
            that keeps at least this share, by adaptive pooling (the share of visual MACs is nearly
            the same).
        reduce: `max` or `avg`.
        depth: linear layers of the MLP.
        gain: of its initial weights, see `dpn.projectors.mlp`.
    """

    def __init__(
        self,
        kernel: Sequence[int] = (2, 2),
        keep: float | None = None,
        reduce: Literal["max", "avg"] = "max",
        depth: int = 2,
        gain: float = 1.0,
        *,
        input_size: int,
        output_size: int,
        grid: Grid,
    ):
        super().__init__(input_size=input_size, output_size=output_size, grid=grid)
        self.kernel, self.keep, self.reduce = (kernel[0], kernel[1]), keep, reduce
        self.layers = mlp(input_size, output_size, depth, gain)

    def grid_after(self, grid: Grid) -> Grid:
        """See `Projector.grid_after`."""
        if self.keep is None:
            return pooled_grid(grid, self.kernel)
        return smallest_grid(grid, self.keep)

    def flops(self, grid: Grid, after: Grid) -> int:
        """See `Projector.flops`."""
        return mlp_flops(self.layers, grid[0] * grid[1])

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """See `Projector.forward`."""
        parts = list(VisualFeatures(self.layers(features.tokens), features.grids).per_image())
        grids = tuple(self.grid_after(grid) for grid in features.grids)
        groups: dict[Grid, list[int]] = {}
        for i, grid in enumerate(features.grids):
            groups.setdefault(grid, []).append(i)
        for grid, members in groups.items():
            rows = torch.stack([parts[i] for i in members]).unflatten(1, grid)  # [S, h, w, D]
            if self.keep is None:
                rows = pool_grid(rows, self.kernel, self.reduce)
            else:
                pool = F.adaptive_max_pool2d if self.reduce == "max" else F.adaptive_avg_pool2d
                rows = pool(rows.permute(0, 3, 1, 2), grids[members[0]]).permute(0, 2, 3, 1)
            for i, pooled in zip(members, rows.flatten(1, 2), strict=True):
                parts[i] = pooled
        return VisualFeatures(torch.cat(parts), grids)

    def check(self) -> list[str]:
        """A kernel that does not fit the tower's grid, or a keep outside (0, 1]."""
        problems = []
        if self.keep is not None and not 0 < self.keep <= 1:
            problems.append(f"projector.keep={self.keep} must be larger than 0 and at most 1.")
        fits = [1 <= k <= g for k, g in zip(self.kernel, self.grid, strict=True)]
        if not all(fits):
            problems.append(
                f"projector.kernel={list(self.kernel)} must lie between [1, 1] and the vision"
                " tower's grid"
                f" {list(self.grid)}."
            )
        return problems


def smallest_grid(grid: Grid, keep: float) -> Grid:
    """The smallest grid of at least a share `keep` of the cells; of equal ones the one nearest the
    same aspect.
    """
    height, width = grid
    candidates = [
        (h, min(width, math.ceil(keep * height * width / h - 1e-9))) for h in range(1, height + 1)
    ]
    enough = [c for c in candidates if c[0] * c[1] >= keep * height * width - 1e-9]
    return min(enough, key=lambda c: (c[0] * c[1], abs(math.log((c[0] * width) / (c[1] * height)))))
