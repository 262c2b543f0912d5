"""A smaller image as baseline for other methods (arXiv 2510.07143)."""

import math

import torch.nn.functional as F
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.projectors._reduction import ReducingProjector
from dpn.projectors.mlp import mlp_flops
from dpn.tokens import Grid
from dpn.vision import VisualFeatures
from dpn.vision.base import VisionTower


class DownsampleProjector(ReducingProjector):
    """Resizes each image before the tower and applies the MLP to all of the tower's tokens.

    The processor's pixels are resized by bicubic interpolation with antialiasing, to whole patches.
    Both sides are scaled by the same factor, so half of an 8 x 8 grid is 6 x 6 tokens, 0.56. Unlike
    other projectors, this one makes the tower cheaper too. It needs no training.

    Args:
        keep: Target share of the tower's tokens at the image's full size, met as closely as whole
            patches allow.
        depth: Number of linear layers of the MLP.
    """

    meets_keep = "roughly"

    def tower_grid(self, grid: Grid) -> Grid:
        assert self.keep is not None
        sides = [max(1, round(n * math.sqrt(self.keep))) for n in grid]
        return sides[0], sides[1]

    def grid_after(self, grid: Grid) -> Grid:
        return self.tower_grid(grid)

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, after[0] * after[1])

    def attach(self, tower: VisionTower) -> None:
        """Check that the tower accepts smaller images.

        Raises:
            ValueError: If it does not compute smaller grids for them.
        """
        super().attach(tower)
        size = (tower.image_size,) * 2
        problem = "the tower computes the same grid as for a larger one."
        try:
            if tower.grid_of(*self._size(size, tower.grid)) == self.tower_grid(tower.grid):
                return
        except ValueError as error:
            problem = str(error)
        raise SettingError(
            f"projector.keep={self.keep} needs smaller images than this vision tower accepts;"
            f" change keep, or use projector=pooled: {problem}"
        )

    def _size(self, size: tuple[int, int], grid: Grid) -> tuple[int, int]:
        """Return height and width of the resized image, given its size and grid."""
        height, width = (
            n * m // g for n, m, g in zip(size, self.tower_grid(grid), grid, strict=True)
        )
        return height, width

    def resize_images(
        self, pixel_values: Tensor, sizes: list[tuple[int, int]], grids: tuple[Grid, ...]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        small = [self._size(size, grid) for size, grid in zip(sizes, grids, strict=True)]
        canvas = pixel_values.new_zeros(
            len(small), 3, max(h for h, _ in small), max(w for _, w in small)
        )
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(size, []).append(i)
        for (height, width), members in groups.items():
            h, w = small[members[0]]
            images = pixel_values[members, :, :height, :width].float()
            copies = F.interpolate(images, (h, w), mode="bicubic", antialias=True)
            canvas[members, :, :h, :w] = copies.to(canvas.dtype)
        return canvas, small

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return VisualFeatures(self.layers(features.tokens), features.grids)
