"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: an overview of the image, then its
high-resolution map, whose lines end with a newline token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from dpn.families.base import Block, Family, Image
from dpn.tokens import Grid

#: A newline token by itself.
NEWLINE = Block((1, 1))


class LlavaNext(Family):
    """Two blocks for each image: the overview, and the map of all tiles without its padding.

    An image without tiles has its overview and one newline token. Each frame of a video is a block;
    LLaVA-OneVision ends a video with a newline token.
    """

    model_types = ("llava_next", "llava_next_video", "llava_onevision")

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        config, side = model.config, self._side(model.config)
        if kind == "video":
            # Called `pixel_values` in older releases of transformers.
            pixels = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
            return [self._video(config, pixels.shape[1])] * len(pixels)
        ratio = arguments.get("vision_aspect_ratio")
        ratio = ratio or getattr(config, "vision_aspect_ratio", None)
        sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
        return [
            self._image(config, size, side, n, ratio) for size, n in zip(sizes, tokens, strict=True)
        ]

    def _image(
        self, config: Any, size: Sequence[int], side: int, tokens: int, ratio: str | None
    ) -> Image:
        base = Block((side, side))
        if tokens == base.rows + 1:
            return base, NEWLINE
        if tokens == base.rows:
            return (base,)
        tiles = get_anyres_image_grid_shape(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
        map_ = torch.empty(1, tiles[0] * side, tiles[1] * side, device="meta")
        height, width = unpad_image(map_, size).shape[1:]
        if ratio is not None and ratio.startswith("anyres_max_"):
            most = int(ratio.removeprefix("anyres_max_"))
            shrink = math.sqrt(height * width / (most * side**2))
            if shrink > 1.1:
                height, width = int(height // shrink), int(width // shrink)
        # Of a very narrow image, only the newline tokens remain.
        return base, Block((height, width + 1), tail=1 if width else 0)

    def _video(self, config: Any, frames: int) -> Image:
        if config.model_type == "llava_onevision":
            side = -(-self._side(config) // 2)  # interpolated to half, rounded up
            return (*(Block((side, side)),) * frames, NEWLINE)
        side = self._side(config) // config.spatial_pool_stride
        return (Block((side, side)),) * frames

    def _side(self, config: Any) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size

    def reference(self, config: Any) -> Grid:
        # An overview and 2 x 2 tiles, below each other.
        side = self._side(config)
        return 5 * side, side
