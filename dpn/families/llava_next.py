"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: an overview of the image, then its
high-resolution map, whose lines end with a newline token.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from dpn.families._towers import llava_attention
from dpn.families.base import Block, Family, Image, Part, TowerAttention
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

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        return llava_attention(inner, after)

    def parts(
        self,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> list[list[Part]]:
        (values,) = patches
        side, config = self._side(inner.config), inner.config
        maps = values.mT.unflatten(2, (side, side))  # [tiles, F, side, side]
        if kind == "video":
            frames = iter(maps)
            return [
                [
                    _part(i, _shrunk(next(frames), block.grid, config), 0)
                    for i, block in enumerate(video)
                    if block != NEWLINE
                ]
                for video in images
            ]
        sizes = torch.as_tensor(arguments["image_sizes"]).tolist()
        done, found = 0, []
        for size, image in zip(sizes, images, strict=True):
            own = [_part(0, maps[done], 0)]
            done += 1
            if image[-1] not in (image[0], NEWLINE):  # a map
                tiles = get_anyres_image_grid_shape(
                    size, config.image_grid_pinpoints, config.vision_config.image_size
                )
                count = tiles[0] * tiles[1]
                if image[1].tail:  # of a very narrow image, only newline tokens remain
                    own += _of_tiles(maps[done : done + count], tiles, size, image[1])
                done += count
            found.append(own)
        return found

    def _side(self, config: Any) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size

    def reference(self, config: Any) -> Image:
        side = self._side(config)  # an overview and 2 x 2 tiles
        return Block((side, side)), Block((2 * side, 2 * side + 1), tail=1)


def _part(block: int, map_: Tensor, tail: int) -> Part:
    """Return the part of a whole block, given its map `[F, h, w]`."""
    height, width = map_.shape[1:]
    places = np.arange(height * (width + tail)).reshape(height, -1)[:, :width].flatten()
    return Part(block, places, map_.flatten(1).mT)


def _of_tiles(maps: Tensor, tiles: Grid, size: Sequence[int], block: Block) -> list[Part]:
    """Return the parts of an image's high-resolution map, one for each tile.

    Args:
        maps: Features of the tiles' patches, `[tiles, F, side, side]`.
        tiles: Number of tiles in height and width.
        size: Height and width of the image in pixels.
        block: Block of the map.
    """
    number = torch.arange(len(maps)).view(-1, 1, 1, 1).expand(-1, 1, *maps.shape[2:])
    grid = block.grid[0], block.grid[1] - block.tail
    joined, tile = (
        unpad_image(x.unflatten(0, tiles).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2), size)
        for x in (maps, number.float())
    )
    if joined.shape[1:] != grid:  # LLaVA-OneVision shrinks large maps
        joined = F.interpolate(joined[None], grid, mode="bilinear")[0]
        tile = F.interpolate(tile[None], grid, mode="nearest")[0]
    if not joined.numel():
        return []
    _, places, values = _part(1, joined, block.tail)
    owner = tile.flatten().numpy()
    members = [np.flatnonzero(owner == one) for one in np.unique(owner)]
    return [Part(1, places[own], values[torch.from_numpy(own)]) for own in members]


def _shrunk(map_: Tensor, grid: Grid, config: Any) -> Tensor:
    """Resize the map `[F, side, side]` of a video's frame as the model resizes its features."""
    if config.model_type == "llava_onevision":
        return F.interpolate(map_[None], grid, mode="bilinear")[0]
    return F.adaptive_avg_pool2d(map_, grid)
