"""Checks of the `generation_config.json` in a model folder, which Hugging Face hardly checks."""

from collections.abc import Mapping
from typing import Any

from dpn.common.errors import SettingError
from dpn.common.ranges import Range, is_number
from dpn.common.text import shorten

_UP_TO_1, _POSITIVE = Range(0, 1), Range(0, above=True)
NUMBERS: dict[str, Range] = {
    "temperature": Range(0),
    "max_time": _POSITIVE,
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), _POSITIVE),
    **dict.fromkeys(("top_p", "min_p", "epsilon_cutoff", "eta_cutoff"), _UP_TO_1),
    **dict.fromkeys(("typical_p", "top_h"), Range(0, 1, above=True)),
    **dict.fromkeys(("length_penalty", "guidance_scale"), Range()),
}
"""Options that take a number, with its range."""
_COUNT, _ID = Range(0, 2**31), Range(0, 2**31)
WHOLE_NUMBERS: dict[str, Range] = {
    **dict.fromkeys(("num_beams", "num_return_sequences"), Range(1, 1024)),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens"), _COUNT),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _COUNT),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id"), _ID),
    "forced_bos_token_id": _ID,
}
"""Options that take a whole number, with its range."""
IDS = ("suppress_tokens", "begin_suppress_tokens")
"""Options that take a list of token ids."""
ID_OR_IDS = ("eos_token_id", "forced_eos_token_id")
"""Options that take a token id or a list of them."""
FLAGS = (
    *("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values", "token_healing"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    "return_dict_in_generate",
)


def check_generation_settings(options: Mapping[str, Any]) -> None:
    """Check the types and ranges of options of `generate`; None stands for the default.

    Options that are not listed in this file are left to Hugging Face.

    Raises:
        SettingError: For the first option that has another type or is out of range.
    """
    for name, value in options.items():
        if value is not None and (wanted := _wanted(name, value)):
            shown = shorten(repr(value), 60)
            raise SettingError(f"{name}={shown} is not possible; it must be {wanted}.")


def _wanted(name: str, value: Any) -> str | None:
    """Describe what an option must be; None if its value is fine."""
    if name in NUMBERS and not is_number(value, NUMBERS[name]):
        return f"a number, {NUMBERS[name]}"
    if name in WHOLE_NUMBERS and not _is_whole(value, WHOLE_NUMBERS[name]):
        return f"a whole number, {WHOLE_NUMBERS[name]}"
    if name in FLAGS and not isinstance(value, bool):
        return "true or false"
    if name in IDS and not _are_ids(value):
        return f"a list of token ids, each {_ID}"
    if name in ID_OR_IDS and not _are_ids(value if isinstance(value, list) else [value]):
        return f"a token id or a list of them, each {_ID}"
    return None


def _is_whole(value: Any, limit: Range) -> bool:
    return isinstance(value, int) and is_number(value, limit)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(one, _ID) for one in value)
