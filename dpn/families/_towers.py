"""Which attention module of a CLIP or SigLIP tower to read."""

from typing import Any

from dpn.families.base import TowerAttention


def layer_index(depth: int, selected: int, after: int) -> int:
    """Return the index of a tower's layer.

    Args:
        depth: Number of layers.
        selected: Index into `hidden_states` of the visual tokens, negative from the end.
        after: 0 for the layer that outputs them, 1 for the one after it, if it exists.
    """
    return min(max(0, selected % (depth + 1) - 1) + after, depth - 1)


def selected_layer(config: Any) -> int:
    """Return the last of the layers in a model's config that its visual tokens are read from."""
    selected = getattr(config, "vision_feature_layer", None)
    if selected is None:
        selected = config.vision_feature_layers
    every = [selected] if isinstance(selected, int) else selected
    return max(index % (config.vision_config.num_hidden_layers + 1) for index in every)


def llava_attention(inner: Any, after: int) -> TowerAttention | None:
    """Return the attention module of a model with a tower at `vision_tower`, see
    `Family.attention`; None if it is neither CLIP nor SigLIP, or if CLS is a visual token.
    """
    config, vision = inner.config, inner.config.vision_config
    has_cls = {"clip_vision_model": True, "siglip_vision_model": False}.get(vision.model_type)
    drops_first = getattr(config, "vision_feature_select_strategy", "default") == "default"
    if has_cls is None or has_cls != drops_first:
        return None
    index = layer_index(vision.num_hidden_layers, selected_layer(config), after)
    path = f"vision_tower.encoder.layers.{index}.self_attn"
    return TowerAttention(path, vision.num_attention_heads, has_cls)
