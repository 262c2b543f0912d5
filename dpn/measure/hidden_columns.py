"""A stock model with some visual columns hidden, as the reference for methods that drop rows.

From the layer on where a compressed model has no row for a column, forward hooks on the stock
model's layers give the layer an attention mask in which only that column itself sees it. All other
rows then compute what they compute in the compressed model.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpn.compressed import Compression
from dpn.routers import RoutingContext
from dpn.tokens import LayerPlan, PackedTokens, Span

#: For each depth at which rows are dropped (layers that ran before), the columns that have a row,
#: bool `[B, T]`.
Visible = dict[int, np.ndarray]


class Watched:
    """A router that notes which columns have a row after each of its reductions.

    Attributes:
        router: The router that acts.
        spans: Spans after each depth at which it changed them.
        planned: Whether it changed what a layer computes.
        changed: Whether it did more than drop rows: merge, pool or reorder them.
    """

    def __init__(self, router: Any):
        self.router = router
        self.spans: dict[int, tuple[Span, ...]] = {}
        self.planned = self.changed = False

    def at(
        self, where: str, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Call the router's hook."""
        out = self.router.at(where, layer, tokens, context)
        if out.spans is not tokens.spans:
            self.spans[layer + (where == "post")] = out.spans
            self.changed |= _changed(tokens, out)
        return out

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """Ask the router for the plan of a layer."""
        plan = self.router.within(layer, tokens, context)
        self.planned |= plan is not None
        return plan

    def visible(self, shape: tuple[int, int]) -> Visible:
        """Return the columns that have a row from each depth on.

        Args:
            shape: Shape `[B, T]` of `input_ids`.
        """
        found: Visible = {}
        for depth, spans in self.spans.items():
            found[depth] = np.ones(shape, dtype=bool)
            for span in spans:
                found[depth][span.sample, span.column : span.column + span.width] = span.owner >= 0
        return found


def _changed(before: PackedTokens, after: PackedTokens) -> bool:
    """Whether a reduction changed rows or their order, or let a row stand for several cells."""
    for old, old_start, new, new_start in zip(
        before.spans, before.starts, after.spans, after.starts, strict=True
    ):
        cells = new.first_cells()
        if (new.owner >= 0).sum() != len(cells) or (np.diff(cells) < 0).any():
            return True
        rows = torch.from_numpy(old_start + old.owner[cells]).to(before.hidden.device)
        left = after.hidden[new_start : new_start + new.rows]
        if not torch.equal(before.hidden[rows], left):
            return True
    return False


@contextmanager
def watched(handle: Compression) -> Iterator[Watched]:
    """Note what the router of a compressed model does in the passes inside of the block."""
    router = handle.router
    watcher = Watched(router)
    handle.router = watcher  # type: ignore[assignment]
    try:
        yield watcher
    finally:
        handle.router = router


@contextmanager
def hidden(layers: Any, visible: Mapping[int, np.ndarray]) -> Iterator[None]:
    """Hide columns from the layers of a stock text model, in the passes inside of the block.

    Args:
        layers: Layers of the stock text model.
        visible: Columns of the prompt that have a row, from each depth on. Columns that follow the
            prompt are visible.
    """
    hooks = []
    for index, layer in enumerate(layers):
        if depths := [depth for depth in visible if depth <= index]:
            hook = _Mask(torch.from_numpy(visible[max(depths)]), index)
            hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


class _Mask:
    """Forward pre-hook that replaces the attention mask of a layer."""

    def __init__(self, visible: Tensor, layer: int):
        self.visible, self.layer = visible, layer

    def __call__(self, layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        rows = args[0] if args else kwargs["hidden_states"]
        new, cache = rows.shape[1], kwargs.get("past_key_values")
        seen = new + (cache.get_seq_length(self.layer) if cache is not None else 0)
        columns = torch.ones(len(rows), seen, dtype=torch.bool)
        columns[:, : self.visible.shape[1]] = self.visible
        causal = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
        itself = torch.arange(seen) == torch.arange(seen - new, seen)[:, None]
        allowed = (causal & columns[:, None] | itself)[:, None]  # [B, 1, new, seen]
        lowest = torch.finfo(rows.dtype).min
        mask = torch.zeros(allowed.shape, dtype=rows.dtype).masked_fill(~allowed, lowest)
        return args, kwargs | {"attention_mask": mask.to(rows.device)}


def last_attention(model: Any, layers: Any, inputs: Mapping[str, Any], layer: int) -> Tensor:
    """Return the attention probabilities of the last column in one layer of a stock model.

    Queries and keys are computed in fp32, by Hugging Face's eager attention, from the rows that
    enter the layer.

    Args:
        model: The stock model.
        layers: Layers of its text model.
        inputs: Inputs of the model.
        layer: Index of the layer.

    Returns:
        Mean over heads, fp32 `[B, T]`.
    """
    caught: dict[str, Any] = {}

    def catch(module: Any, args: Any, kwargs: Any) -> None:
        caught["rows"] = args[0] if args else kwargs["hidden_states"]
        caught["rotary"] = kwargs["position_embeddings"]

    hook = layers[layer].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**inputs, logits_to_keep=1)
    finally:
        hook.remove()
    attention = copy.deepcopy(layers[layer].self_attn).float()
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = "eager"
    rows = layers[layer].input_layernorm(caught["rows"]).float()
    count = rows.shape[1]
    causal = torch.full((count, count), torch.finfo(torch.float32).min, device=rows.device).triu(1)
    cosines, sines = (part.float() for part in caught["rotary"])
    _, probabilities = attention(
        hidden_states=rows,
        position_embeddings=(cosines, sines),
        attention_mask=causal[None, None],
    )
    return probabilities.mean(1)[:, -1]
