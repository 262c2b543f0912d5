"""Idefics3 and SmolVLM: square tiles with text between them."""

from typing import Any

from dpn.families.base import TiledFamily, TowerAttention
from dpn.tokens import Grid


class Idefics3(TiledFamily):
    """Each tile is a run of columns by itself, so it counts as an image."""

    model_types = ("idefics3", "smolvlm")
    text = "text_model"

    def tile(self, config: Any) -> Grid:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        return side, side

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        vision = inner.config.vision_config
        path = f"vision_model.encoder.layers.{vision.num_hidden_layers - 1}.self_attn"
        patches = inner.config.scale_factor**2
        return TowerAttention(path, vision.num_attention_heads, False, patches)
