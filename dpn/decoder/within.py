"""A decoder layer that computes less for visual rows than for text rows: fewer heads, neighbours
only, a narrower FFN. What is left out is not computed, nor masked afterwards. The rows that pass a
layer by are none of its pack.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.decoder.attention import PrefillAttention
from dpn.decoder.projections import inputs, outputs, rotated, units_of
from dpn.routers.base import LayerPlan
from dpn.tokens import PackedTokens, Span


@dataclass(frozen=True)
class PlannedRows:
    """Where text and visual rows of a pack are; shared by all layers that see the same rows.

    Attributes:
        tokens: the pack.
        attention: writes the cache.
    """

    tokens: PackedTokens
    attention: PrefillAttention

    @cached_property
    def is_visual(self) -> np.ndarray:
        """`[N]` on the host."""
        mark = np.zeros(self.tokens.offsets[-1], dtype=bool)
        for start, span in zip(self.starts, self.tokens.spans, strict=True):
            mark[start : start + span.rows] = True
        return mark

    @cached_property
    def starts(self) -> list[int]:
        """First row of each span."""
        return [self.tokens.row(s.sample, s.column) - s.rows + 1 for s in self.tokens.spans]

    @cached_property
    def text(self) -> Tensor:
        """Text rows, `[Nt]`."""
        return self._on_device(np.flatnonzero(~self.is_visual))

    @cached_property
    def visual(self) -> Tensor:
        """Visual rows, `[Nv]`."""
        return self._on_device(np.flatnonzero(self.is_visual))

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.tokens.hidden.device, non_blocking=True)

    def queries(self, visual: bool) -> "Queries":
        """Text rows or visual rows that attend to all rows before them."""
        return self._visual_queries if visual else self._text_queries

    @cached_property
    def _text_queries(self) -> "Queries":
        return self._queries(~self.is_visual)

    @cached_property
    def _visual_queries(self) -> "Queries":
        return self._queries(self.is_visual)

    def _queries(self, wanted: np.ndarray) -> "Queries":
        """Padded places of the wanted rows, and what they see."""
        offsets, longest = np.asarray(self.tokens.offsets), max(self.tokens.lengths)
        own = [np.flatnonzero(wanted[a:b]) for a, b in pairwise(offsets)]
        counts = np.array([len(rows) for rows in own])
        steps = np.arange(counts.max())
        place = np.zeros((len(own), len(steps)), dtype=np.int64)  # row in its sample
        for row, rows in zip(place, own, strict=True):
            row[: len(rows)] = rows
        filled = steps < counts[:, None]
        take = np.where(filled, (counts.cumsum() - counts)[:, None] + steps, 0)
        keys = np.minimum(offsets[:-1, None] + np.arange(longest), offsets[1:, None] - 1)
        sees = (np.arange(longest) <= place[:, :, None])[:, None]  # padding sees the first row
        return Queries(*map(self._on_device, (take, keys, sees, np.flatnonzero(filled))))

    def neighbourhoods(self, radius: int) -> list["Neighbourhood"]:
        """One for each grid size among the spans."""
        spans = sorted(
            (s for s in zip(self.starts, self.tokens.spans, strict=True) if s[1].rows),
            key=lambda s: s[1].grid,
        )
        return [
            self._neighbourhood(list(same), radius)
            for _, same in groupby(spans, key=lambda s: s[1].grid)
        ]

    def _neighbourhood(self, spans: list[tuple[int, Span]], radius: int) -> "Neighbourhood":
        height, width = spans[0][1].grid
        first = [self.tokens.offsets[span.sample] for _, span in spans]
        before = [
            a + np.flatnonzero(~self.is_visual[a:start])
            for a, (start, _) in zip(first, spans, strict=True)
        ]
        most = max(map(len, before))
        grid = np.arange(height * width).reshape(height, width)
        # The same number of lines of the grid for each line, see `pairs_within`.
        count, line = min(height, 2 * radius + 1), np.arange(height)[:, None]
        lines = np.clip(line - radius, 0, height - count) + np.arange(count)  # [h, lines]
        local = grid[lines].reshape(height, -1)  # [h, lines * w]
        inside = np.repeat(np.abs(lines - line) <= radius, width, axis=1)
        columns = np.tile(np.arange(width), count)
        near = np.abs(columns - np.arange(width)[:, None]) <= radius  # [w, lines * w]
        near_all = inside[:, None] & near  # [h, w, lines * w]
        place = self.is_visual.cumsum() - 1
        take = np.stack([place[start + grid] for start, _ in spans])  # [S, h, w]
        keys = np.zeros((len(spans), height, most + local.shape[1]), dtype=np.int64)
        sees = np.zeros((len(spans), height, width, keys.shape[2]), dtype=bool)
        for i, ((start, _), text) in enumerate(zip(spans, before, strict=True)):
            keys[i, :, : len(text)] = text
            keys[i, :, most:] = start + local
            sees[i, :, :, : len(text)] = True
            sees[i, :, :, most:] = near_all
        shape = (len(spans) * height, -1)
        parts = (take.reshape(shape), keys.reshape(shape), sees.reshape(shape[0], 1, width, -1))
        return Neighbourhood(*map(self._on_device, parts))


@dataclass(frozen=True)
class Queries:
    """A padded batch of query rows.

    Attributes:
        take: `[b, q]` queries, counted among the wanted rows.
        keys: `[b, k]` rows of their keys.
        sees: bool `[b, 1, q, k]`.
        filled: places of the flat `[b * q]` that are no padding, in the order of the rows.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor
    filled: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """Visual rows, one line of a grid after the other, and what they see.

    Attributes:
        take: `[S * h, w]` queries, counted among the visual rows.
        keys: `[S * h, k]` rows of their keys: text before the image, then the lines around.
        sees: bool `[S * h, 1, w, k]`.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor


def run(
    layer: Any,
    hidden: Tensor,
    plan: LayerPlan,
    rows: PlannedRows,
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """What a stock layer computes, less for visual rows as the plan says.

    Args:
        layer: with the submodules of a Llama-like Hugging Face layer.
        hidden: `[1, N, D]`.
        plan: for the visual rows.
        rows: of the pack.
        position_embeddings: cosines and sines, `[1, N, Dh]` each.

    Returns:
        `[1, N, D]`.
    """
    hidden = hidden[0]
    normed = layer.input_layernorm(hidden)
    hidden = hidden + _attention(layer.self_attn, normed, plan, rows, position_embeddings)
    normed = layer.post_attention_layernorm(hidden)
    out = _ffn(layer.mlp, normed, plan, rows)
    if plan.scale is not None:
        factor = out.new_ones(len(out)).index_copy(0, rows.visual, plan.scale.to(out.dtype))
        out = out * factor[:, None]
    return (hidden + out)[None]


def _attention(
    attention: Any,
    normed: Tensor,
    plan: LayerPlan,
    rows: PlannedRows,
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """Text rows attend as ever, to values of visual rows that are zero in inactive heads; visual
    rows attend in active heads alone.
    """
    if plan.radius is None and plan.heads is None:
        stock = {"position_embeddings": position_embeddings, "attention_mask": None}
        return attention(normed[None], **stock, packing=rows.attention)[0][0]
    size, group = attention.head_dim, attention.num_key_value_groups
    text, visual = rows.text, rows.visual
    values = heads = None
    if plan.heads is not None:
        values = torch.tensor(plan.heads, dtype=torch.long).to(normed.device)
        heads = (values[:, None] * group + torch.arange(group).to(values)).flatten()
    cos, sin = (x[0] for x in position_embeddings)
    query = rotated(attention, "q", normed[text], cos[text], sin[text])
    asked = rotated(attention, "q", normed[visual], cos[visual], sin[visual], heads)
    key = rotated(attention, "k", normed, cos, sin)
    value = normed.new_zeros(key.shape)
    value[text] = outputs(attention.v_proj, normed[text]).unflatten(-1, (-1, size))
    shown = outputs(attention.v_proj, normed[visual], units_of(values, size))
    place = (visual,) if values is None else (visual[:, None], values)
    value = value.index_put(place, shown.unflatten(-1, (-1, size)))
    if rows.attention.write is not None:
        rows.attention.write(attention.layer_idx, key, value)
    scaling = attention.scaling
    out = normed.new_zeros(normed.shape)
    found = _padded(query, key, value, rows.queries(visual=False), scaling)
    out = out.index_copy(0, text, attention.o_proj(found.flatten(1)))
    if not len(visual):
        return out
    if values is not None:
        key, value = key[:, values], value[:, values]
    if plan.radius is None:
        found = _padded(asked, key, value, rows.queries(visual=True), scaling)
    else:
        found = torch.zeros_like(asked)
        for near in rows.neighbourhoods(plan.radius):
            seen = _sdpa(asked[near.take], key[near.keys], value[near.keys], near.sees, scaling)
            found = found.index_copy(0, near.take.flatten(), seen.flatten(0, 1))
    return out.index_copy(
        0, visual, inputs(attention.o_proj, found.flatten(1), units_of(heads, size))
    )


def _ffn(mlp: Any, normed: Tensor, plan: LayerPlan, rows: PlannedRows) -> Tensor:
    """The gated FFN; visual rows have its first `plan.ffn` units only."""
    if plan.ffn is None:
        return mlp(normed)
    units = slice(0, plan.ffn)
    visual = normed[rows.visual]
    gate = mlp.act_fn(outputs(mlp.gate_proj, visual, units))
    narrow = inputs(mlp.down_proj, gate * outputs(mlp.up_proj, visual, units), units)
    out = normed.new_zeros(normed.shape)
    out = out.index_copy(0, rows.text, mlp(normed[rows.text]))
    return out.index_copy(0, rows.visual, narrow)


def _padded(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    """`[n, H, Dh]` queries over the rows of their samples, as one padded batch."""
    if not len(query):
        return query
    keys, values = key[queries.keys], value[queries.keys]
    out = _sdpa(query[queries.take], keys, values, queries.sees, scaling)
    return out.flatten(0, 1)[queries.filled]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scaling: float) -> Tensor:
    """`[b, q, H, Dh]` over `[b, k, Hkv, Dh]`."""
    return F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=sees,
        scale=scaling,
        enable_gqa=query.shape[2] != key.shape[2],
    ).transpose(1, 2)
