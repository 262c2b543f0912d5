"""Arguments of Hugging Face's `forward` and `generate` that `DPNForConditionalGeneration` lacks.

Those that cannot change a result are passed over; all others are refused by name.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dpn.common.errors import SettingError

#: Arguments of `forward` that change nothing here, whatever their value; `generate` passes on the
#: tokenizer of its stop strings.
HARMLESS = frozenset(
    {"cache_position", "mm_token_type_ids", "return_loss", "token_type_ids", "tokenizer"}
)
_PACKED = "sequences in one row are not distinguished; give one per row, with an attention_mask"
#: For each refused argument, why it is not supported and what to do.
REASONS = {
    "inputs_embeds": "images and questions are found by their token ids; give input_ids",
    "output_hidden_states": "layers hold different numbers of visual rows; read them with forward"
    " hooks on model.language.layers, and their numbers in the output's trace",
    "output_attentions": "attention probabilities are not kept, and layers hold different numbers"
    " of visual rows; leave it out",
    "output_router_logits": "the auxiliary loss of experts is not computed; leave it out",
    "position_ids": "positions follow from the attention_mask and the router; leave it out",
    "shift_labels": "labels are shifted by the model; give labels",
    "is_causal": "attention is always causal; leave it out",
    "skip_logits": "give return_logits=False",
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"), _PACKED),
    "seq_idx": _PACKED,
}
#: Options of `generate` that need another kind of cache.
CACHES = {
    "cache_implementation": "the cache holds another number of rows for each layer and sample",
    "prefill_chunk_size": "the router reads the whole prompt at once",
}


def check_arguments(
    given: Mapping[str, Any], input_ids: Tensor | None, attention_mask: Tensor | None
) -> None:
    """Check the arguments of a forward pass that are not in its signature.

    Raises:
        SettingError: If one of them matters, or `input_ids` are missing.
    """
    for name, value in given.items():
        if not _is_neutral(name, value, input_ids, attention_mask):
            reason = REASONS.get(name, "the model has no such argument; leave it out")
            raise SettingError(f"{name} is not supported: {reason}.")
    if input_ids is None:
        raise SettingError("The model was called without input_ids; give them, [B, T].")


def _is_neutral(
    name: str, value: Any, input_ids: Tensor | None, attention_mask: Tensor | None
) -> bool:
    """Return whether an argument has a value that changes nothing."""
    if name == "is_causal":
        return value in (None, True)
    if value is None or value is False or name in HARMLESS:
        return True
    if name != "position_ids" or input_ids is None:
        return False
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    places = (mask.cumsum(1) - 1)[:, -input_ids.shape[1] :]
    filled = mask[:, -input_ids.shape[1] :] != 0
    return value.shape[-1] == places.shape[1] and bool((value == places)[filled].all())


def check_generation(options: Mapping[str, Any]) -> None:
    """Check the options of `generate` that choose a cache.

    Raises:
        SettingError: If the model has no such cache.
    """
    for name, reason in CACHES.items():
        value = options.get(name)
        if value is not None and (name, value) != ("cache_implementation", "dynamic"):
            raise SettingError(f"{name}={value!r} is not supported: {reason}; leave it out.")
