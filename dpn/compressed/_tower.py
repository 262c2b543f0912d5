"""Attention of a stock vision tower, read while the tower of a compressed model runs."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dpn.common.errors import SettingError
from dpn.families import TowerAttention
from dpn.vision import Needs, VisionTower

#: Name under which an attention module of a tower finds `read_attention`.
IMPLEMENTATION = "dpn_read"
#: Largest number of scores that are held at once, 256 MiB in fp32.
SCORES = 2**26


class StockTower(VisionTower):
    """What projectors may ask of a stock tower: its attention, but no CLS token and no layers."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def request(self, needs: Needs) -> None:
        if needs.layers:
            raise SettingError(
                "This projector needs hidden states of the vision tower's layers, which"
                " dpn.compress does not read; choose another projector."
            )
        self.needs = needs


class AttentionReader:
    """Reads what an attention module of a vision tower attends to.

    Args:
        place: The module.
        one_softmax: Whether there is one softmax over the full width instead of one per head.
    """

    def __init__(self, place: TowerAttention, one_softmax: bool):
        self.place, self.one_softmax = place, one_softmax
        self.stock = ""  # implementation of attention that computes the module's result
        self._found: list[Tensor] | None = None

    def watch(self, attention: Any) -> None:
        """Let the reader note what a module computes; the module must not be the original's."""
        self.stock = attention.config._attn_implementation
        attention.config = copy.deepcopy(attention.config)
        attention.config._attn_implementation = IMPLEMENTATION
        attention.dpn_reader = self

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collect features `[K, n, 1 + C]` from each call of the module: the attention that each
        token but CLS receives, and its keys, all heads side by side.
        """
        self._found = []
        try:
            yield self._found
        finally:
            self._found = None

    @torch.no_grad()
    def note(self, query: Tensor, key: Tensor, mask: Any) -> None:
        """Note queries and keys `[K, H, n, Dh]` of a call, if this is a time of reading."""
        if self._found is None:
            return
        cls, keys = int(self.place.cls), key.transpose(1, 2).flatten(2)
        if self.one_softmax:
            query, key = query.transpose(1, 2).flatten(2)[:, None], keys[:, None]
        received = received_attention(query, key, valid_tokens(mask), self.place.cls)
        self._found.append(torch.cat([received[..., None], keys.float()], -1)[:, cls:])


def read_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function of Hugging Face that notes queries and keys, then calls the module's own
    one.
    """
    reader: Any = module.dpn_reader
    reader.note(query, key, attention_mask)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    stock = ALL_ATTENTION_FUNCTIONS.get_interface(reader.stock, eager)
    return stock(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, read_attention)


def received_attention(query: Tensor, key: Tensor, valid: Tensor | None, cls: bool) -> Tensor:
    """Compute the attention that each token receives, fp32 `[K, n]`: from CLS, or the mean over all
    tokens in a tower without it; mean over heads.

    Args:
        query: Queries `[K, H, n, Dh]`.
        key: Keys `[K, H, n, Dh]`.
        valid: Tokens that are not padding, bool `[K, n]`; None: all.
        cls: Whether the first token is CLS.
    """
    images, heads, tokens, width = query.shape
    asking = query[:, :, :1] if cls else query
    key = key.float().transpose(2, 3) * width**-0.5
    received = key.new_zeros(images, tokens)
    for begin in range(0, asking.shape[2], step := max(1, SCORES // (images * heads * tokens))):
        scores = asking[:, :, begin : begin + step].float() @ key  # [K, H, step, n]
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        share = scores.softmax(-1).sum(1)  # [K, step, n]
        if valid is not None and not cls:
            share = share * valid[:, begin : begin + step, None]
        received += share.sum(1)
    counts = valid.sum(1, keepdim=True) if valid is not None and not cls else asking.shape[2]
    return received / (heads * counts)


def valid_tokens(mask: Any) -> Tensor | None:
    """Return the tokens that are not padding, bool `[K, n]`, given the mask of a call: `[K, n]`, or
    `[K, 1, n, n]` of bools or addends.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise SettingError(
            "The projector reads the attention of the vision tower, whose masks have an unknown"
            " form; load the model with attn_implementation='sdpa'."
        )
    row = mask if mask.ndim == 2 else mask[:, 0, 0]
    return row > -1 if row.is_floating_point() and mask.ndim == 4 else row.bool()
