"""DFMR of LLaVA-Zip (arXiv 2412.08771): images with little detail are pooled more."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from dpn.common.ranges import Layers, NonNegative
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid, Kernel, pool_grid, pooled_grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class DFMRProjector(ReducingProjector):
    """Average-pools the tower's tokens with a kernel for each image, then applies the MLP.

    For each kernel, the deviation of an image is the standard deviation within a window, averaged
    over windows and channels. The largest kernel whose deviation is at most the threshold is used,
    or none if all deviations are above it. Our sources of the paper do not give its kernels and
    thresholds, whether the deviation divides by n or n - 1 (here n), and how ties are resolved.
    These defaults are ours, and a threshold must be chosen for the tower.

    Args:
        kernels: Sides of the windows.
        threshold: Largest deviation that is pooled, in the units of the tower's tokens.
        keep: Target for the mean share of the tower's tokens on training data, met by a factor of
            the threshold that is found before training and again after it.
        depth: Number of linear layers of the MLP.
    """

    meets_keep = "roughly"
    needs_keep: ClassVar[bool] = False
    adaptive = True
    calibrated = True
    price: Tensor

    def __init__(
        self,
        kernels: Sequence[int] = (2, 3),
        threshold: NonNegative = 0.5,
        keep: float | None = None,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.kernels, self.threshold = sorted(kernels, reverse=True), threshold
        # Logarithm of the factor of the threshold, see `dpn.training.calibration`.
        self.register_buffer("price", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the factor of the threshold as 1."""
        nn.init.zeros_(self.price)

    def grid_after(self, grid: Grid) -> Grid:
        # Of an image that is not pooled.
        return grid

    def reach(self) -> tuple[float, float]:
        # If every image is pooled with the largest kernel, or none is.
        height, width = pooled_grid(self.grid, (max(self.kernels, default=1),) * 2)
        return height * width / (self.grid[0] * self.grid[1]), 1.0

    def check(self) -> list[str]:
        if all(side > 1 for side in self.kernels):
            return super().check()
        return [f"projector.kernels={self.kernels} must be sides of at least 2."]

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return self.project(by_grid(features, self._pool))

    def _pool(self, group: ImageGroup) -> list[Rows]:
        maps = group.tokens.unflatten(1, group.grid)  # [S, h, w, C]
        threshold = self.threshold * self.price.exp()
        plain = [deviation(maps, (side, side)) <= threshold for side in self.kernels]
        plain.append(torch.ones_like(plain[0]) if plain else maps.new_ones(len(maps)).bool())
        choices = torch.stack(plain, 1).int().argmax(1).tolist()
        rows = []
        for image, choice in zip(maps, choices, strict=True):
            kernel = ([*self.kernels, 1][choice],) * 2
            pooled = pool_grid(image[None], kernel, "avg").flatten(0, 2)
            owner = window_of_row(group.grid, kernel)
            rows.append(Rows(pooled, pooled_grid(group.grid, kernel), owner))
        return rows


@torch.no_grad()
def deviation(maps: Tensor, kernel: Kernel) -> Tensor:
    """Compute the standard deviation within windows of `[S, h, w, C]`, mean over windows and
    channels, `[S]`.
    """
    x = maps.float()
    mean = pool_grid(x, kernel, "avg")
    variance = pool_grid(x.square(), kernel, "avg") - mean.square()
    return variance.clamp(min=0).sqrt().mean((1, 2, 3))
