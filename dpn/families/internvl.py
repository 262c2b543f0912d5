"""InternVL in Hugging Face's format: square tiles, and an overview if there are several."""

from typing import Any

from dpn.families._towers import layer_index
from dpn.families.base import TiledFamily, TowerAttention
from dpn.tokens import Grid


class InternVL(TiledFamily):
    """The tiles of an image follow each other in one run of columns; how they are arranged is known
    to the processor only. A frame of a video is an image.
    """

    model_types = ("internvl",)

    def tile(self, config: Any) -> Grid:
        vision = config.vision_config
        height, width = (
            int(size // patch * config.downsample_ratio)
            for size, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return height, width

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        config, vision = inner.config, inner.config.vision_config
        if config.vision_feature_select_strategy != "default":
            return None  # CLS would be a visual token
        index = layer_index(vision.num_hidden_layers, config.vision_feature_layer, after)
        path = f"vision_tower.encoder.layer.{index}.attention"
        patches = round(config.downsample_ratio**-2)
        return TowerAttention(path, vision.num_attention_heads, True, patches)
