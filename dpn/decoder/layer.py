"""DecoderLayer: a stock Hugging Face decoder layer as one unit to call, checkpoint and shard."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel

from dpn.decoder.attention import IMPLEMENTATION


class DecoderLayer(nn.Module):
    """Stands in the place of a Hugging Face layer, with the same parameter names and the same call.

    The layer's children are registered here, so state dicts stay those of the stock model, and
    sharding or checkpointing hooks on this module cover everything the layer computes.

    Args:
        layer: a decoder layer of a Llama-like model, whose parameters all belong to its children.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if own:
            raise ValueError(
                f"{type(layer).__name__} has parameters of its own ({', '.join(own)}); only"
                " layers whose"
                " parameters belong to their submodules (Llama, Qwen2, Mistral ...) are supported."
            )
        for name, child in layer.named_children():
            self.add_module(name, child)
        self._stock = (layer,)  # in a tuple, so that the layer is not registered a second time

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[1, N, D]` to `[1, N, D]`; see the stock layer for the arguments."""
        return self._stock[0].forward(hidden, *args, **kwargs)


def build_language(text_config: Any) -> Any:
    """A stock Hugging Face text model without head, each of its layers in a `DecoderLayer`."""
    # A copy: whoever builds another model from the same config would change our attention with it.
    text_config = copy.deepcopy(text_config)
    language = AutoModel.from_config(text_config, attn_implementation=IMPLEMENTATION)
    language.layers = nn.ModuleList(DecoderLayer(layer) for layer in language.layers)
    return language
