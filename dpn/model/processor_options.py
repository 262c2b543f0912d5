"""Options of Hugging Face's processors: truncation, padding, special tokens and tensor types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.data.batch import DataError, PaddingSide, pad_ids

#: Further options, with the values that change nothing here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), (True,)),
    "return_attention_mask": (True,),
    "data_format": ("channels_first",),
    "device": ("cpu",),
    "verbose": (True, False),
    **dict.fromkeys(("return_token_type_ids", "return_mm_token_type_ids"), (False,)),
    **dict.fromkeys(("return_special_tokens_mask", "return_offsets_mapping"), (False,)),
    **dict.fromkeys(("return_overflowing_tokens", "return_length", "return_metadata"), (False,)),
    **dict.fromkeys(("is_split_into_words", "split_special_tokens"), (False,)),
    **dict.fromkeys(("return_text_replacement_offsets", "sanitize_control_tokens"), (False,)),
    **dict.fromkeys(("do_sample_frames", "load_audio_from_video"), (False,)),
}
#: Groups in which Hugging Face's processors also take their options.
GROUPS = ("common_kwargs", "images_kwargs", "text_kwargs")
PADDING = (True, "longest", "max_length", False, "do_not_pad")
TRUNCATION = (None, True, "longest_first", "only_first", False, "do_not_truncate")
#: Larger values of a tokenizer's `model_max_length` mean that it has none.
NO_LIMIT = 2**31


@dataclass(frozen=True)
class ProcessorOptions:
    """Options of a processor's call, with the names and meanings of Hugging Face.

    Attributes:
        padding: `True` or `longest`, `max_length`, or `False` for rows of their own lengths.
        truncation: Whether to cut rows to `max_length`; default: if `max_length` is given and rows
            are not padded to it.
        max_length: Number of ids, BOS included; default: the tokenizer's `model_max_length`.
        pad_to_multiple_of: Number that the padded length shall be a multiple of.
        padding_side: Side of the padding; `left` for generation.
        add_special_tokens: Whether each text gets a BOS token.
        return_tensors: `pt`, `np`, or None for lists.
        input_data_format: `channels_first` or `channels_last` of arrays; default: inferred.
    """

    padding: bool | str = True
    truncation: bool | str | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: PaddingSide = "left"
    add_special_tokens: bool = True
    return_tensors: str | None = "pt"
    input_data_format: str | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Read options, which may also stand in groups such as `text_kwargs`.

        Raises:
            SettingError: If an option that matters is unknown, or has an unknown value.
        """
        flat = {name: value for name, value in given.items() if name not in GROUPS}
        for group in GROUPS:
            flat |= given.get(group) or {}
        own = {field.name for field in fields(cls)}
        for name, value in flat.items():
            neutral = isinstance(value, str | bool) and value in NEUTRAL.get(name, ())
            if name in own or value is None or neutral:
                continue
            raise SettingError(
                f"{name}={value!r} is not supported by this processor; leave it out. It takes"
                f" {', '.join(sorted(own))}, and its image settings when it is built."
            )
        # None asks for the default, except that `return_tensors=None` asks for lists.
        chosen = {n: v for n, v in flat.items() if v is not None or n == "return_tensors"}
        options = cls(**{name: value for name, value in chosen.items() if name in own})
        options._check()
        return options

    def _check(self) -> None:
        allowed = {
            "padding": PADDING,
            "truncation": TRUNCATION,
            "return_tensors": ("pt", "np", None),
            "padding_side": ("left", "right"),
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                shown = ", ".join(map(repr, values))
                raise SettingError(f"{name}={value!r} is not supported; use one of {shown}.")
        for name in ("max_length", "pad_to_multiple_of"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingError(f"{name}={value!r} must be a whole number of 1 or more.")

    @property
    def truncates(self) -> bool:
        """Whether rows are cut to `max_length`."""
        if self.truncation is None:
            return self.max_length is not None and self.padding != "max_length"
        return self.truncation not in (False, "do_not_truncate")

    @property
    def pads(self) -> bool:
        """Whether rows are padded to one length."""
        return self.padding not in (False, "do_not_pad")

    def limit(self, tokenizer: Any) -> int | None:
        """Return the maximum number of ids, or None."""
        most = self.max_length or tokenizer.model_max_length
        return most if most < NO_LIMIT else None

    def cut(self, ids: Sequence[int], tokenizer: Any, image_id: int) -> list[int]:
        """Cut a row to the maximum length, at the tokenizer's `truncation_side`.

        Raises:
            DataError: If an image would be lost.
        """
        limit = self.limit(tokenizer)
        if not self.truncates or limit is None or len(ids) <= limit:
            return list(ids)
        if tokenizer.truncation_side == "left":
            head = int(ids[0] == tokenizer.bos_token_id)
            kept = [*ids[:head], *ids[len(ids) - limit + head :]]
        else:
            kept = list(ids[:limit])
        if kept.count(image_id) != list(ids).count(image_id):
            raise DataError(
                f"max_length={limit} cuts an image off a text of {len(ids)} ids; raise it, or leave"
                " out truncation."
            )
        return kept

    def pad(self, rows: Sequence[Sequence[int]], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Pad rows to one length; return ids and attention mask, `[B, T]` each.

        Raises:
            SettingError: If rows of different lengths shall not be padded, or to no length.
        """
        lengths = {len(row) for row in rows}
        if not self.pads and len(lengths) > 1:
            raise SettingError(
                f"padding=False leaves rows of {min(lengths)} to {max(lengths)} ids, which do not"
                " fit in one tensor; use padding=True, or return_tensors=None."
            )
        width = max(lengths)
        if self.padding == "max_length":
            limit = self.limit(tokenizer)
            if limit is None:
                raise SettingError("padding='max_length' needs a max_length; give one.")
            width = max(width, limit)
        if self.pads and self.pad_to_multiple_of:
            width += -width % self.pad_to_multiple_of
        ids, mask = pad_ids(rows, tokenizer.pad_token_id, self.padding_side)
        extra = width - ids.shape[1]
        sides = (extra, 0) if self.padding_side == "left" else (0, extra)
        return F.pad(ids, sides, value=tokenizer.pad_token_id), F.pad(mask, sides)

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return tensors in the form of `return_tensors`; images without one stay arrays."""
        if self.return_tensors == "pt":
            return dict(tensors)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if self.return_tensors == "np":
            return arrays
        return {n: list(a) if n == "pixel_values" else a.tolist() for n, a in arrays.items()}
