"""What a vision tower hands on, and what every tower is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpn.tokens import Grid


@dataclass(frozen=True)
class VisualFeatures:
    """The tokens of a flat list of images, which may differ in size.

    Attributes:
        tokens: `[sum of h * w, C]` image after image, in raster order.
        grids: (h, w) of each image.
    """

    tokens: Tensor
    grids: tuple[Grid, ...]

    def per_image(self) -> tuple[Tensor, ...]:
        """`[h * w, C]` of each image."""
        return self.tokens.split([h * w for h, w in self.grids])


class VisionTower(nn.Module):
    """Pixels to visual tokens, one call for all images of a size.

    Attributes:
        image_size: native height and width in pixels.
        patch_size: pixels that height and width are multiples of.
        output_size: C, width of a token.
        checkpoint_layers: recompute layers in the backward pass of training.
        aligned: modules that are trained or frozen with the projector, not with the tower.
    """

    image_size: int
    patch_size: int
    output_size: int
    checkpoint_layers: bool = False
    aligned: ClassVar[tuple[str, ...]] = ()

    @property
    def grid(self) -> Grid:
        """Tokens of an image of the native size."""
        return self.grid_of(self.image_size, self.image_size)

    def grid_of(self, height: int, width: int) -> Grid:
        """Tokens of an image.

        Raises:
            ValueError: if the size is no multiple of the patch.
        """
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise ValueError(
                f"An image of {height} x {width} pixels can not be cut into patches of"
                f" {self.patch_size};"
                " resize it to a multiple in the processor."
            )
        return height // self.patch_size, width // self.patch_size

    def encode(self, pixels: Tensor) -> Tensor:
        """Images of one size, `[I, 3, H, W]`, to tokens `[I, h * w, C]`."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def flops(self, grid: Grid) -> int:
        """FLOPs (FMA = 2) of one image whose tokens form `grid`."""
        raise TypeError(f"{type(self).__name__} does not count its FLOPs")

    def run(self, layers: Iterable[nn.Module], hidden: Tensor, *args: Any) -> Tensor:
        """Layers one after the other, each called with `hidden` and `args`."""
        for layer in layers:
            if self.checkpoint_layers and self.training:
                hidden = checkpoint(layer, hidden, *args, use_reentrant=False)
            else:
                hidden = layer(hidden, *args)
        return hidden

    def features(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> VisualFeatures:
        """Encode images that may differ in size.

        Args:
            pixel_values: `[I, 3, Hmax, Wmax]` with each image in the upper left corner.
            sizes: (height, width) of each image in pixels.
        """
        return VisualFeatures(self(pixel_values, sizes), tuple(self.grid_of(*s) for s in sizes))

    def forward(self, pixel_values: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """The tokens of `features`; one call whatever the sizes are, as sharding engines want."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(size, []).append(i)
        if len(groups) == 1:
            height, width = sizes[0]
            return self.encode(pixel_values[:, :, :height, :width]).flatten(0, 1)
        parts: list[Tensor] = [pixel_values.new_empty(0)] * len(sizes)
        for (height, width), members in groups.items():
            encoded = self.encode(pixel_values[members, :, :height, :width])
            for i, tokens in zip(members, encoded, strict=True):
                parts[i] = tokens
        return torch.cat(parts)
