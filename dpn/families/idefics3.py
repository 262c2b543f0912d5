"""Idefics3 and SmolVLM: square tiles with text between them."""

from typing import Any

import numpy as np

from dpn.families.base import TiledFamily, TowerAttention
from dpn.tokens import Grid


class Idefics3(TiledFamily):
    """Each tile is a run of columns by itself, behind a token that names its place. The overview is
    the last tile of an image, so a run begins an image if the one before it follows the same token
    as the last run of the sample.
    """

    model_types = ("idefics3", "smolvlm")
    text = "text_model"

    def tile(self, config: Any) -> Grid:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        return side, side

    def begins(self, ids: np.ndarray, runs: np.ndarray) -> np.ndarray:
        overview = ids[runs - 1] == ids[runs[-1] - 1] if len(runs) else np.empty(0, dtype=bool)
        return np.concatenate([[True], overview[:-1]])[: len(runs)]

    def attention(self, inner: Any, after: int) -> TowerAttention | None:
        vision = inner.config.vision_config
        path = f"vision_model.encoder.layers.{vision.num_hidden_layers - 1}.self_attn"
        patches = inner.config.scale_factor**2
        return TowerAttention(path, vision.num_attention_heads, False, patches)
