"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of any size, rotary positions of three axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from dpn.families.base import Block, Family, Image, Part, TowerAttention


class QwenVL(Family):
    """One block for each image, and one for each frame (pair of frames) of a video."""

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        merge = model.config.vision_config.spatial_merge_size
        grids = _grids(arguments).tolist()
        return [(Block((h // merge, w // merge)),) * t for t, h, w in grids]

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        vision = inner.config.vision_config
        # Qwen2.5-VL attends within windows in the other layers.
        full = getattr(vision, "fullatt_block_indexes", None) or [vision.depth - 1]
        path, patches = f"visual.blocks.{max(full)}.attn", vision.spatial_merge_size**2
        return TowerAttention(path, vision.num_heads, False, patches)

    def parts(
        self,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> list[list[Part]]:
        vision = inner.config.vision_config
        # The patches of a token follow each other.
        every = torch.cat([frame.flatten(0, 1) for frame in patches])
        tokens = every.unflatten(0, (-1, vision.spatial_merge_size**2)).mean(1)
        if hasattr(vision, "fullatt_block_indexes"):  # the tower orders tokens by windows
            order, _ = get_vision_window_index(
                _grids(arguments), vision.spatial_merge_size, vision.window_size, vision.patch_size
            )
            tokens = tokens[order.argsort().to(tokens.device)]
        pieces = iter(tokens.split([block.rows for image in images for block in image]))
        return [
            [Part(i, np.arange(block.rows), next(pieces)) for i, block in enumerate(image)]
            for image in images
        ]

    def reference(self, config: Any) -> Image:
        # An image of 896 x 896 pixels for Qwen2-VL and Qwen2.5-VL, 1024 x 1024 for Qwen3-VL.
        return (Block((32, 32)),)


def _grids(arguments: Mapping[str, Any]) -> Tensor:
    """Return the numbers of frames and of patches in height and width, `[I, 3]`."""
    grids = arguments.get("image_grid_thw")
    return arguments["video_grid_thw"] if grids is None else grids
