"""Families of Hugging Face VLMs that `dpn.compress` supports, one file each: where the grids of
their visual tokens are, and what is refused.

Imports `common` and `tokens`.
"""

from typing import Any

from dpn.common.auto_classes import MODEL_TYPE
from dpn.common.errors import SettingError
from dpn.common.registry import Registry
from dpn.families._placement import encoded_blocks, place_spans
from dpn.families.base import Block, Family, Image, Part, TowerAttention

__all__ = [
    "Block",
    "Family",
    "Image",
    "Part",
    "TowerAttention",
    "encoded_blocks",
    "family_of",
    "place_spans",
]

_registry = Registry("dpn.families", Family)

#: Model types that cannot be compressed, and why.
OTHERS = {
    "gemma3": "it attends in both directions among the tokens of an image and uses sliding windows",
    "paligemma": "it attends in both directions among all tokens of the prompt",
    "mllama": "its visual tokens are read by cross-attention and are no rows of the decoder",
    "internvl_chat": "its code is not a part of transformers; load the checkpoint whose name ends"
    " with -hf, or convert yours with OpenGVLab's internvl_custom2hf.py",
    MODEL_TYPE: "it reduces visual tokens already; choose its router in its config",
}


def family_of(config: Any) -> Family:
    """Return the family of a model's config.

    Raises:
        SettingError: If the family is not supported, or this checkpoint of it is not.
    """
    every = [_registry.resolve(name)() for name in _registry.names()]
    families = {kind: family for family in every for kind in family.model_types}
    kind = getattr(config, "model_type", None)
    if kind not in families:
        reason = f", because {OTHERS[kind]}" if kind in OTHERS else ""
        raise SettingError(
            f"dpn.compress does not support models of type {kind!r}{reason}. Supported are"
            f" {', '.join(sorted(families))}; python -m dpn.verify model=hf model.id=NAME checks"
            " your checkpoint of one of them."
        )
    if reason := families[kind].refuse(config):
        raise SettingError(f"This model of type {kind!r} cannot be compressed: {reason}")
    return families[kind]
