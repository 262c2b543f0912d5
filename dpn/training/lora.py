"""Low-rank updates of the language model (LoRA, arXiv 2106.09685), by peft."""

from typing import Any

from torch import nn

from dpn.common.ranges import AtLeast1, BelowOne

#: The linear layers that LLaVA's LoRA recipe updates: all of a decoder layer.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add(
    language: nn.Module, rank: AtLeast1 = 128, alpha: AtLeast1 = 256, dropout: BelowOne = 0.05
) -> None:
    """Freeze the language model and add low-rank updates to its linear layers, in place.

    Args:
        language: Text model.
        rank: Rank of the updates.
        alpha: Numerator of their scale, alpha / rank.
        dropout: Dropout probability of their inputs.
    """
    from peft import LoraConfig, inject_adapter_in_model

    language.requires_grad_(False)
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=TARGETS, bias="none"
    )
    inject_adapter_in_model(settings, language)


def merge(language: nn.Module) -> None:
    """Add the updates to the weights and remove them, in place; do nothing if there are none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: list[tuple[nn.Module, str, Any]] = [
        (parent, name, child)
        for parent in language.modules()
        for name, child in parent.named_children()
        if isinstance(child, BaseTunerLayer)
    ]
    for parent, name, child in found:
        child.merge()
        setattr(parent, name, child.get_base_layer())
