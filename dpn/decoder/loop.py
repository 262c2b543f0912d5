"""The loop over the layers of a stock Hugging Face text model: `prefill` runs a whole pack,
`append` adds text rows to a filled cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dpn.common.distributed import connect
from dpn.common.errors import SettingError
from dpn.decoder.attention import IMPLEMENTATION, PrefillAttention
from dpn.decoder.backends import BackendName
from dpn.decoder.cache import RaggedCache, Stage
from dpn.decoder.layer import QueryRows
from dpn.decoder.rows import PlannedRows
from dpn.routers.base import Router, RoutingContext, Summary
from dpn.tokens import PackedTokens, Trace


def prefill(
    language: Any,
    router: Router,
    tokens: PackedTokens,
    context: RoutingContext,
    backend: BackendName = "auto",
    cache: RaggedCache | None = None,
    checkpoint_layers: bool = False,
    after_layer: Callable[[int, PackedTokens], PackedTokens] | None = None,
) -> PackedTokens:
    """Run all layers over a pack and let the router change the visual rows between them.

    Args:
        language: Hugging Face text model whose layers are `DecoderLayer`s.
        router: Router that is called before and after every layer.
        tokens: The pack.
        context: Routing context; its trace records the rows of every layer.
        backend: Attention backend.
        cache: Empty cache to fill.
        checkpoint_layers: Whether layers (never the router) are recomputed in the backward pass.
        after_layer: Function of a layer's index and the pack after it, before the router acts
            there; returns the pack with what the text model adds to it.

    Returns:
        The pack after the last layer, before the final norm.
    """
    if language.config._attn_implementation != IMPLEMENTATION:
        raise SettingError(
            f"The text model's attention was set to {language.config._attn_implementation}, which"
            f" would mix the samples of a batch; set it back to {IMPLEMENTATION}."
        )
    scores = _AttentionScores(language, context.trace)
    context = replace(context, entered=tokens, attention_scores=scores)
    seen: PackedTokens | None = None
    call: dict[str, Any] = {}
    for index, layer in enumerate(language.layers):
        scores.layer, scores.before = layer, None
        tokens = router.at("pre", index, tokens, context)
        plan = router.within(index, tokens, context)
        routed = None if plan is None else plan.rows
        part = tokens if routed is None else tokens.keep(routed)
        context.trace.enter(part, plan)
        if seen is None or part.spans is not seen.spans:
            if not all(part.lengths):
                raise SettingError(
                    f"Sample {part.lengths.index(0)} holds nothing but images, and the router"
                    " removed all of their rows; give each sample a text token."
                )
            seen = part
            call = _stage_arguments(language, part, backend, cache)
            rows = PlannedRows(part, call["packing"])
        run: Any = layer
        if plan is not None and any(part.visual_rows):
            run = partial(layer, plan=plan, rows=rows)
        elif plan is not None and plan.scale is not None:
            part = part.with_hidden(connect(part.hidden, [plan.scale]))
        if checkpoint_layers:
            run = partial(checkpoint, run, use_reentrant=False)
        hidden = run(part.hidden[None], **call).squeeze(0)  # a select would copy
        tokens = tokens.with_hidden(hidden) if routed is None else tokens.put(routed, hidden)
        scores.before = part
        if after_layer is not None:
            tokens = after_layer(index, tokens)
        tokens = router.at("post", index, tokens, context)
    return tokens


class _AttentionScores:
    """Implements `RoutingContext.attention_scores` for the current layer of the loop.

    Attributes:
        layer: The current layer.
        before: Pack that entered the current layer; None until that layer has run.
    """

    def __init__(self, language: Any, trace: Trace):
        self.language, self.trace = language, trace
        self.layer: Any = None
        self.before: PackedTokens | None = None

    @torch.no_grad()
    def __call__(
        self,
        tokens: PackedTokens,
        rows: Sequence[Sequence[int]],
        summary: Summary | None = None,
    ) -> list[Tensor]:
        seen = self.before or tokens
        if seen.spans is not tokens.spans:
            raise SettingError(
                "Two routers of a chain act at the same layer, and the second one needs that"
                " layer's attention to rows that were removed or skipped the layer; let them act"
                " after different layers."
            )
        queries = QueryRows(tuple(map(tuple, rows)), seen.offsets, summary)
        self.trace.score_reads.append(tuple(zip(map(len, rows), seen.lengths, strict=True)))
        rotary = _rotary(self.language, seen.hidden, seen.positions)
        return self.layer(seen.hidden[None], position_embeddings=rotary, queries=queries)


def _stage_arguments(
    language: Any, tokens: PackedTokens, backend: BackendName, cache: RaggedCache | None
) -> dict[str, Any]:
    """Return the keyword arguments of all layers that see the same rows.

    `position_ids` are never passed: Hugging Face silently treats ids with gaps as packed sequences.
    """
    write = None
    if cache is not None:
        stage = cache.stage(tokens)
        write = partial(_write, cache, stage)
    return {
        "position_embeddings": _rotary(language, tokens.hidden, tokens.positions),
        "packing": PrefillAttention(tokens, backend, write),
    }


def _rotary(language: Any, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of positions `[N]`, or `[A, N]` for A rotary axes.

    `forward` is called directly to bypass the hooks of sharding engines: they expect the same
    module calls in every step, but how often the rows change depends on the routes.
    """
    return language.rotary_emb.forward(hidden[None], position_ids=positions[..., None, :])


def _write(cache: RaggedCache, stage: Stage, layer: int, key: Tensor, value: Tensor) -> None:
    cache.write(stage, key, value)


@dataclass(frozen=True)
class AppendAttention:
    """Attention of new rows to a layer's cached rows and to the new rows before them.

    Attributes:
        cache: Cache that holds the layer's rows.
        counts: Number of new rows of each sample.
        places: (sample, place in the buffer) of each new row, `[M]` each.
        mask: Attention mask, bool `[B, 1, longest new, longest]`.
        take: New row at each place of the padded queries, `[B, longest new]`.
    """

    cache: RaggedCache
    counts: tuple[int, ...]
    places: tuple[Tensor, Tensor]
    mask: Tensor
    take: Tensor

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        self.cache.append(layer, self.places, key, value)
        longest = self.mask.shape[-1]
        out = F.scaled_dot_product_attention(
            query[self.take].transpose(1, 2),  # [B, H, longest new, Dh]
            self.cache.keys[layer][:, :, :longest],
            self.cache.values[layer][:, :, :longest],
            attn_mask=self.mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)
        if self.take.shape[1] == 1 and min(self.counts) == 1:
            return out[:, 0]
        return torch.cat([rows[:n] for rows, n in zip(out, self.counts, strict=True)])


def append(
    language: Any,
    hidden: Tensor,
    counts: Sequence[int],
    cache: RaggedCache,
    positions: Tensor | None = None,
) -> Tensor:
    """Run all layers over new text rows that follow the rows of a cache.

    Args:
        language: Hugging Face text model whose layers are `DecoderLayer`s.
        hidden: Embeddings `[M, D]`, sample after sample.
        counts: Number of new rows of each sample; may be 0.
        cache: Filled cache, to which the new rows are added.
        positions: Rotary positions of the new rows, `[M]` or `[A, M]`; default: counted from each
            sample's last row.

    Returns:
        Hidden states `[M, D]` after the last layer, before the final norm.
    """
    cache.make_room(max(counts))
    arguments = {
        id(stage): _append_arguments(language, hidden, counts, cache, stage, positions)
        for stage in cache.stages
    }
    hidden = hidden[None]
    for index, layer in enumerate(language.layers):
        hidden = layer(hidden, **arguments[id(cache.stage_of[index])])
    for stage in cache.stages:
        stage.lengths = stage.lengths + torch.tensor(counts)
        stage.positions = stage.positions + torch.tensor(counts)
    return hidden[0]


def _append_arguments(
    language: Any,
    hidden: Tensor,
    counts: Sequence[int],
    cache: RaggedCache,
    stage: Stage,
    positions: Tensor | None,
) -> dict[str, Any]:
    new = torch.tensor(counts)
    sample = torch.arange(len(counts)).repeat_interleave(new)
    starts = new.cumsum(0) - new
    step = torch.arange(len(sample)) - starts[sample]  # place among the sample's new rows
    longest_new, longest = int(new.max()), int((stage.lengths + new).max())
    steps = torch.arange(longest_new)
    last_key = (stage.lengths[:, None] + steps)[:, None, :, None]  # [B, 1, longest new, 1]
    mask = torch.arange(longest) <= last_key
    take = (starts[:, None] + steps).clamp(max=max(len(sample) - 1, 0))
    device = hidden.device
    if positions is None:
        positions = (stage.positions[sample] + step).to(device)
    places = (sample.to(device), (stage.lengths[sample] + step).to(device))
    attention = AppendAttention(cache, tuple(counts), places, mask.to(device), take.to(device))
    return {
        "position_embeddings": _rotary(language, hidden, positions),
        "packing": attention,
    }
