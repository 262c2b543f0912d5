"""Causal attention over packed rows behind one function, and its backends.

`segments` runs each run of equally long samples in one call, `padded` all samples padded to the
longest, `varlen` the flash kernel for packed sequences on a GPU. They give the same result; `auto`
picks by a measured table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpn.tokens import PackedTokens

BackendName = Literal["auto", "segments", "padded", "varlen", "flash"]
#: Precisions of the kernels for packed sequences.
HALF = (torch.float16, torch.bfloat16)
#: Name under which Hugging Face layers find `packed_attention`.
IMPLEMENTATION = "dpn_packed"


class Attention(Protocol):
    """What the decoder loop hands to every layer's attention."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """`[N, H, Dh]` queries, `[N, Hkv, Dh]` keys and values to `[N, H, Dh]`."""


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
    """The attention function of Hugging Face layers inside our loop; without `packing` it is HF's
    own SDPA.

    Args:
        module: the HF attention module.
        query: `[1, H, N, Dh]`; key and value: `[1, Hkv, N, Dh]`.
        key: see query.
        value: see query.
        attention_mask: only without `packing`.
        scaling: of the scores.
        dropout: probability.
        packing: where samples begin and end, and the cache.
        **kwargs: of HF's SDPA.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kwargs.get("sliding_window") is not None:
        raise ValueError(
            "The text model uses sliding-window attention, which packed attention does not"
            " support; set"
            " use_sliding_window=false in its text_config."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    out = packing.attend(module.layer_idx, q, k, v, scaling, dropout)  # type: ignore[arg-type]
    return out.unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@dataclass(frozen=True)
class PrefillAttention:
    """Attention of the rows of a pack among themselves.

    Attributes:
        tokens: the pack; only its lengths are used.
        backend: name of the backend.
        write: called as `write(layer, key, value)` where a cache is filled.
    """

    tokens: PackedTokens
    backend: BackendName
    write: Callable[[int, Tensor, Tensor], None] | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """See `Attention`."""
        if self.write is not None:
            self.write(layer, key, value)
        return self._run(self, query, key, value, scaling, dropout)

    @cached_property
    def _run(self) -> Callable[..., Tensor]:
        return BACKENDS[pick_backend(self.tokens) if self.backend == "auto" else self.backend]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(samples, rows of each) for every run of equally long samples."""
        return [(len(list(same)), rows) for rows, same in groupby(self.tokens.lengths)]

    @cached_property
    def pad_index(self) -> Tensor:
        """Row of each place of the right-padded batch, `[B * longest]`; padding points at its
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
    """Causal attention of `[b, T, H, Dh]`, same shape out."""
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
    plan: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """One SDPA call per run of equally long samples; no row is padded."""
    if len(plan.runs) == 1:  # a split would copy in the backward pass
        q, k, v = (x.unflatten(0, plan.runs[0]) for x in (query, key, value))
        return _sdpa(q, k, v, scaling, dropout).flatten(0, 1)
    sizes = [count * rows for count, rows in plan.runs]
    parts = []
    for (count, rows), q, k, v in zip(
        plan.runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        if rows == 0:
            continue
        q, k, v = (x.unflatten(0, (count, rows)) for x in (q, k, v))
        parts.append(_sdpa(q, k, v, scaling, dropout).flatten(0, 1))
    return torch.cat(parts)


def padded(
    plan: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """One SDPA call on the right-padded batch: causal rows never see the padding behind them."""
    if len(plan.runs) == 1:
        return segments(plan, query, key, value, scaling, dropout)
    shape = (len(plan.tokens.lengths), max(plan.tokens.lengths))
    q, k, v = (x.index_select(0, plan.pad_index).unflatten(0, shape) for x in (query, key, value))
    return _sdpa(q, k, v, scaling, dropout).flatten(0, 1).index_select(0, plan.unpad_index)


def varlen(
    plan: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """PyTorch's flash attention over packed sequences; CUDA, fp16 or bf16."""
    query, key, value = _for_kernel("varlen", query, key, value)
    if dropout:
        raise ValueError("attention=varlen has no dropout; set attention_dropout=0 in text_config.")
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = plan.tokens.cu_seqlens, max(plan.tokens.lengths)
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
    plan: PrefillAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    dropout: float,
) -> Tensor:
    """The same by the package flash-attn."""
    query, key, value = _for_kernel("flash", query, key, value)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        raise ValueError(
            "attention=flash needs the package flash-attn (pip install 'dpn[flash-attn]'); PyTorch"
            " itself has attention=varlen."
        ) from None
    cu, longest = plan.tokens.cu_seqlens, max(plan.tokens.lengths)
    return flash_attn_varlen_func(
        *(query, key, value, cu, cu, longest, longest),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
    )


def _for_kernel(name: str, *rows: Tensor) -> list[Tensor]:
    """Queries, keys and values in the precision of a GPU's kernel, which autocast does not know."""
    device, dtype = rows[0].device.type, working_dtype(rows[0])
    if device != "cuda" or dtype not in HALF:
        raise ValueError(
            f"attention={name} needs a CUDA device and fp16 or bf16, got {device} and {dtype};"
            " use attention=auto, segments or padded."
        )
    return [x.to(dtype) for x in rows]


def working_dtype(rows: Tensor) -> torch.dtype:
    """The precision of products of rows: autocast's, where that is on."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "segments": segments,
    "padded": padded,
    "varlen": varlen,
    "flash": flash,
}


#: Products that are as slow on a CPU as one more call (`experiments/speed/attention.py`).
CALL_PRODUCTS = 400_000


def pick_backend(tokens: PackedTokens) -> str:
    """The faster backend for a pack: on a GPU in half precision its kernel; elsewhere a padded
    batch, if the products of its padding are less than what the calls of segments cost.
    """
    if tokens.hidden.device.type == "cuda" and working_dtype(tokens.hidden) in HALF:
        return "varlen"
    lengths = tokens.lengths
    saved = sum(a != b for a, b in pairwise(lengths))  # calls
    padding = len(lengths) * max(lengths) ** 2 - sum(n * n for n in lengths)
    return "padded" if padding * tokens.hidden.shape[1] < saved * CALL_PRODUCTS else "segments"
