"""M3 (arXiv 2405.17430): one model for several scales of visual tokens."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

from dpn.common.ranges import Layers
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid, context_of
from dpn.projectors.base import ProjectorSizes
from dpn.projectors.mlp import mlp_flops
from dpn.tokens import Grid, Kernel, pool_grid, pooled_grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class MatryoshkaPoolProjector(ReducingProjector):
    """Applies the MLP, then average pooling with one of several kernels, each a scale.

    Training uses all scales, inference one of them. The paper averages the loss over all scales in
    every step. Here each step draws one scale, the same for all images and processes, which has the
    same expectation at a fraction of the cost.

    Args:
        kernels: Sides of the kernels; those of the paper leave 576, 144, 36, 9 and 1 of 24 x 24
            tokens. A kernel that is larger than an image pools all of it.
        kernel: Side of the kernel at inference.
        keep: Target share of the tower's tokens at inference; if given, the scale that is closest
            to it replaces `kernel`.
        depth: Number of linear layers of the MLP.
    """

    meets_keep = "roughly"
    needs_keep: ClassVar[bool] = False

    def __init__(
        self,
        kernels: Sequence[int] = (1, 2, 4, 8, 24),
        kernel: int = 2,
        keep: float | None = None,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.kernels, self.kernel = tuple(kernels), kernel

    def kernel_for(self, grid: Grid) -> Kernel:
        """Return the kernel of an image at inference."""
        fitting = [fitted(side, grid) for side in self.kernels]
        if self.keep is None:
            return fitted(self.kernel, grid)
        cells = grid[0] * grid[1]
        return min(fitting, key=lambda k: abs(_count(grid, k) / cells - (self.keep or 0)))

    def grid_after(self, grid: Grid) -> Grid:
        return pooled_grid(grid, self.kernel_for(grid))

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, grid[0] * grid[1])

    def check(self) -> list[str]:
        problems = super().check()
        if not self.kernels or min(*self.kernels, self.kernel) < 1:
            problems.append(
                f"projector.kernels={list(self.kernels)} and projector.kernel={self.kernel} must be"
                " sides of at least 1."
            )
        return problems

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        drawn: int | None = None
        if self.training:
            drawn = self.kernels[int(context_of(features).draw_for_step() * len(self.kernels))]

        def pool(group: ImageGroup) -> list[Rows]:
            kernel = fitted(drawn, group.grid) if drawn else self.kernel_for(group.grid)
            rows = pool_grid(group.tokens.unflatten(1, group.grid), kernel, "avg")
            grid, owner = pooled_grid(group.grid, kernel), window_of_row(group.grid, kernel)
            return [Rows(x, grid, owner) for x in rows.flatten(1, 2)]

        return by_grid(self.project(features), pool)


def fitted(side: int, grid: Grid) -> Kernel:
    """Return a square kernel, cut to the size of a grid."""
    return min(side, grid[0]), min(side, grid[1])


def _count(grid: Grid, kernel: Kernel) -> int:
    height, width = pooled_grid(grid, kernel)
    return height * width
