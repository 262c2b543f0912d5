"""Causal attention over packed rows: one function, several backends with the same result.

`segments` makes one call per run of equally long samples, `padded` pads all samples to the longest
one, `varlen` uses PyTorch's flash kernel for packed sequences on a GPU, and `flash` the package
flash-attn. `auto` chooses by measured costs, see `pick_backend`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpn.common.errors import SettingError
from dpn.decoder.backends import BackendName
from dpn.tokens import PackedTokens

#: Precisions that the GPU kernels for packed sequences support.
HALF = (torch.float16, torch.bfloat16)
#: Name under which Hugging Face layers find `packed_attention`.
IMPLEMENTATION = "dpn_packed"


class Attention(Protocol):
    """Interface of the object that the decoder loop passes to every layer's attention."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Attend with queries `[N, H, Dh]` to keys and values `[N, Hkv, Dh]`; return
        `[N, H, Dh]`.
        """


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Attention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of Hugging Face layers inside the decoder loop; without `packing` it is
    Hugging Face's own SDPA.

    Args:
        module: Hugging Face attention module.
        query: Queries `[1, H, N, Dh]`.
        key: Keys `[1, Hkv, N, Dh]`.
        value: Values `[1, Hkv, N, Dh]`.
        attention_mask: Mask for Hugging Face's SDPA; not used with `packing`.
        scaling: Factor of the scores; default: 1 / sqrt(Dh).
        dropout: Dropout probability.
        packing: Attention over packed rows, which knows where samples begin and fills the cache.
        **kwargs: Further arguments of Hugging Face's SDPA.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("sliding_window") is not None:
        raise SettingError(
            "The text model uses sliding-window attention, which packed attention does not"
            " support; set sliding_window=null in its text_config."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = packing.attend(module.layer_idx, q, k, v, scaling, dropout)  # type: ignore[arg-type]
    return out.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class PrefillAttention:
    """Causal attention within each sample of a pack.

    Attributes:
        tokens: The pack; only its lengths are used.
        backend: Name of the backend.
        write: Function that fills a cache, called as `write(layer, key, value)`.
    """

    tokens: PackedTokens
    backend: BackendName
    write: Callable[[int, Tensor, Tensor], None] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        if self.write is not None:
            self.write(layer, key, value)
        return self._run(self, query, key, value, scaling, dropout)

    @cached_property
    def _run(self) -> Callable[..., Tensor]:
        return BACKENDS[pick_backend(self.tokens) if self.backend == "auto" else self.backend]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(number of samples, rows of each sample) for every run of equally long samples."""
        return [(len(list(same)), rows) for rows, same in groupby(self.tokens.lengths)]

    @cached_property
    def pad_index(self) -> Tensor:
        """Row at each place of the right-padded batch, `[B * longest]`; padding repeats the
        sample's last row.
        """
        offsets = self.tokens.cu_seqlens.long()
        steps = torch.arange(max(self.tokens.lengths), device=offsets.device)
        return torch.minimum(offsets[:-1, None] + steps, offsets[1:, None] - 1).flatten()

    @cached_property
    def unpad_index(self) -> Tensor:
        """Place in the right-padded batch of each row, `[N]`."""
        lengths, longest = self.tokens.lengths, max(self.tokens.lengths)
        places = [torch.arange(n) + b * longest for b, n in enumerate(lengths)]
        return torch.cat(places).to(self.tokens.hidden.device, non_blocking=True)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Compute causal attention of `[b, T, H, Dh]`; the output has the same shape."""
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return out.transpose(1, 2)


def segments(
    packing: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Call SDPA once per run of equally long samples, without padding."""
    if len(packing.runs) == 1:  # a split would copy in the backward pass
        q, k, v = (x.unflatten(0, packing.runs[0]) for x in (query, key, value))
        return _sdpa(q, k, v, scaling, dropout).flatten(0, 1)
    sizes = [count * rows for count, rows in packing.runs]
    parts = []
    for (count, rows), q, k, v in zip(
        packing.runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        if rows == 0:
            continue
        q, k, v = (x.unflatten(0, (count, rows)) for x in (q, k, v))
        parts.append(_sdpa(q, k, v, scaling, dropout).flatten(0, 1))
    return torch.cat(parts)


def padded(
    packing: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Call SDPA once on the right-padded batch; causal rows never attend to the padding behind
    them.
    """
    if len(packing.runs) == 1:
        return segments(packing, query, key, value, scaling, dropout)
    shape = (len(packing.tokens.lengths), max(packing.tokens.lengths))
    q, k, v = (
        x.index_select(0, packing.pad_index).unflatten(0, shape) for x in (query, key, value)
    )
    return _sdpa(q, k, v, scaling, dropout).flatten(0, 1).index_select(0, packing.unpad_index)


def varlen(
    packing: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Call PyTorch's flash attention over packed sequences; CUDA, fp16 or bf16."""
    query, key, value = _for_kernel("varlen", query, key, value)
    if dropout:
        raise SettingError(
            "attention=varlen has no dropout; set attention_dropout=0 in text_config."
        )
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = packing.tokens.cu_seqlens, max(packing.tokens.lengths)
    return varlen_attn(  # type: ignore[return-value]
        query,
        key,
        value,
        cu,
        cu,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )


def flash(
    packing: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Call the package flash-attn's attention over packed sequences; CUDA, fp16 or bf16."""
    query, key, value = _for_kernel("flash", query, key, value)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        raise SettingError(
            "attention=flash needs the package flash-attn (pip install 'dpn[flash-attn]'); PyTorch"
            " itself has attention=varlen."
        ) from None
    cu, longest = packing.tokens.cu_seqlens, max(packing.tokens.lengths)
    return flash_attn_varlen_func(
        *(query, key, value, cu, cu, longest, longest),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )


def _for_kernel(name: str, *rows: Tensor) -> list[Tensor]:
    """Cast queries, keys and values to the working precision: autocast does not cover the GPU
    kernels.
    """
    device, dtype = rows[0].device.type, working_dtype(rows[0])
    if device != "cuda" or dtype not in HALF:
        raise SettingError(
            f"attention={name} needs a CUDA device and fp16 or bf16, got {device} and {dtype};"
            " use attention=auto, segments or padded."
        )
    return [x.to(dtype) for x in rows]


def working_dtype(rows: Tensor) -> torch.dtype:
    """Return the precision of matrix products of rows: autocast's if it is enabled."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "segments": segments,
    "padded": padded,
    "varlen": varlen,
    "flash": flash,
}


#: Products that take a CPU as long as one more call of SDPA (`experiments/speed/attention.py`).
CALL_PRODUCTS = 400_000


def pick_backend(tokens: PackedTokens) -> str:
    """Choose the faster backend for a pack.

    This is `varlen` on a GPU in half precision. Elsewhere it is `padded` if the extra products with
    padding cost less than the extra calls of `segments`, else `segments`.
    """
    if tokens.hidden.device.type == "cuda" and working_dtype(tokens.hidden) in HALF:
        return "varlen"
    lengths = tokens.lengths
    saved = sum(a != b for a, b in pairwise(lengths))  # calls of SDPA that padding saves
    padding = len(lengths) * max(lengths) ** 2 - sum(n * n for n in lengths)
    return "padded" if padding * tokens.hidden.shape[1] < saved * CALL_PRODUCTS else "segments"
