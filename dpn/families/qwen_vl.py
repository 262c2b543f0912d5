"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of any size, rotary positions of three axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpn.families.base import Block, Family, Image
from dpn.tokens import Grid


class QwenVL(Family):
    """One block for each image, and one for each frame (pair of frames) of a video."""

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

    def layout(
        self, model: Any, kind: str, arguments: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Image]:
        merge = model.config.vision_config.spatial_merge_size
        grids = arguments.get("image_grid_thw")
        grids = arguments["video_grid_thw"] if grids is None else grids
        return [(Block((h // merge, w // merge)),) * t for t, h, w in grids.tolist()]

    def reference(self, config: Any) -> Grid:
        # An image of 896 x 896 pixels for Qwen2-VL and Qwen2.5-VL, 1024 x 1024 for Qwen3-VL.
        return 32, 32
