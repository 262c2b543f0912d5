"""A stock decoder layer that computes less for visual rows than for text rows: fewer heads, local
attention, a narrower FFN.

Whatever the plan leaves out is not computed at all, rather than masked afterwards. Rows that skip
the layer are not part of the pack that it gets.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.marks import marked
from dpn.decoder.projections import Units, inputs, outputs, rotated, units_of
from dpn.decoder.rows import Neighbourhood, PlannedRows, Queries
from dpn.tokens import LayerPlan, probed_rows


@torch.compiler.disable
def run(
    layer: Any,
    hidden: Tensor,
    plan: LayerPlan,
    rows: PlannedRows,
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """Run a stock layer, but for visual rows only the parts that the plan keeps.

    Args:
        layer: Layer with the submodules of a Llama-like Hugging Face layer.
        hidden: Hidden states that enter the layer, `[1, N, D]`.
        plan: Plan for the visual rows.
        rows: Indices of the pack's text and visual rows.
        position_embeddings: Cosines and sines, `[1, N, Dh]` each.

    Returns:
        Hidden states `[1, N, D]` after the layer.
    """
    hidden = hidden[0]
    normed = layer.input_layernorm(hidden)
    hidden = hidden + _attention(layer.self_attn, normed, plan, rows, position_embeddings)
    normed = layer.post_attention_layernorm(hidden)
    out = _ffn(layer.mlp, normed, plan, rows)
    if plan.scale is not None:
        text, visual = rows.apart(out)
        out = rows.together(text, visual * plan.scale.to(out.dtype)[:, None])
    return (hidden + out)[None]


@marked("attention")
def _attention(
    attention: Any,
    normed: Tensor,
    plan: LayerPlan,
    rows: PlannedRows,
    position_embeddings: tuple[Tensor, Tensor],
) -> Tensor:
    """Compute attention under a plan.

    Text rows attend as in the stock layer, except that the values of visual rows are zero in
    inactive heads, or in all heads with `plan.mute`. Visual rows attend in active heads only.
    """
    is_local = plan.radius is not None or plan.window is not None
    if not is_local and plan.heads is None and not plan.mute:
        return attention(
            normed[None],
            attention_mask=None,
            position_embeddings=position_embeddings,
            packing=rows.attention,
        )[0].squeeze(0)
    cos, sin = (x[0] for x in position_embeddings)
    # Queries, keys, values: the order of the stock layer. ZeRO-2 adds the gradients of all
    # processes in the order in which they arrive, and a process without images runs the stock
    # layer.
    if plan.heads is None:
        asks = rows.apart(rotated(attention, "q", normed, cos, sin))
        key = rotated(attention, "k", normed, cos, sin).contiguous()
        value = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
        value = _muted(value, rows) if plan.mute else value
        shown, units = (key, value), None
    else:
        kv = torch.tensor(plan.heads, dtype=torch.long).to(normed.device, non_blocking=True)
        asks, units = _queries_of(attention, normed, kv, rows, (cos, sin))
        key = rotated(attention, "k", normed, cos, sin).contiguous()
        value = _values_of(attention, normed, kv, rows)
        value = _muted(value, rows) if plan.mute else value
        shown = key.index_select(1, kv), value.index_select(1, kv)
    if rows.attention.write is not None:
        rows.attention.write(attention.layer_idx, key, value)
    text = _padded(asks[0], key, value, rows.queries(visual=False), attention.scaling)
    if is_local:
        near = rows.neighbourhoods(plan.radius, plan.window)
        visual = _near(asks[1], *shown, near, attention.scaling)
    else:
        visual = _padded(asks[1], *shown, rows.queries(visual=True), attention.scaling)
    if units is None:
        return attention.o_proj(rows.together(text, visual).flatten(1))
    out = inputs(attention.o_proj, visual.flatten(1), units)
    return rows.together(attention.o_proj(text.flatten(1)), out)


def _queries_of(
    attention: Any,
    normed: Tensor,
    kv: Tensor,
    rows: PlannedRows,
    rotary: tuple[Tensor, Tensor],
) -> tuple[tuple[Tensor, Tensor], Units]:
    """Compute queries in all heads for text rows and in the active heads for visual rows.

    Args:
        attention: Stock attention module.
        normed: Hidden states after the layer's first norm, `[N, D]`.
        kv: Active key/value heads.
        rows: Indices of the pack's text and visual rows.
        rotary: Cosines and sines, `[N, Dh]` each.

    Returns:
        Queries of text rows `[Nt, H, Dh]` and of visual rows `[Nv, active, Dh]`; indices of the
        active heads' units among the inputs of the output projection.
    """
    size, group = attention.head_dim, attention.num_key_value_groups
    heads = (kv[:, None] * group + torch.arange(group, device=kv.device)).flatten()
    text, visual = rows.apart(normed)
    (text_cos, cos), (text_sin, sin) = map(rows.apart, rotary)
    asks = (
        rotated(attention, "q", text, text_cos, text_sin),
        rotated(attention, "q", visual, cos, sin, heads),
    )
    return asks, units_of(heads, size)


def _values_of(attention: Any, normed: Tensor, kv: Tensor, rows: PlannedRows) -> Tensor:
    """Compute values `[N, Hkv, Dh]`; those of visual rows are zero in all heads but `kv`."""
    size = attention.head_dim
    text, visual = rows.apart(normed)
    values = outputs(attention.v_proj, text).unflatten(-1, (-1, size))
    some = outputs(attention.v_proj, visual, units_of(kv, size)).unflatten(-1, (-1, size))
    none = some.new_zeros(len(some), values.shape[1], size)
    return rows.together(values, none.index_copy(1, kv, some))


def _muted(value: Tensor, rows: PlannedRows) -> Tensor:
    """Set the values of visual rows to zero."""
    text, visual = rows.apart(value)
    return rows.together(text, torch.zeros_like(visual))


@marked("FFN")
def _ffn(mlp: Any, normed: Tensor, plan: LayerPlan, rows: PlannedRows) -> Tensor:
    """Compute the gated FFN, with `plan.ffn` hidden units for visual rows."""
    if plan.ffn is None:
        return mlp(normed)
    text, visual = rows.apart(normed)
    if plan.probe is None:
        return rows.together(mlp(text), _narrow(mlp, visual, slice(0, plan.ffn)))
    images = visual.split([span.rows for span in rows.tokens.spans])
    parts = [_narrow(mlp, x, _most_active(mlp, x, plan.ffn, plan.probe)) for x in images if len(x)]
    return rows.together(mlp(text), torch.cat(parts))


def _narrow(mlp: Any, rows: Tensor, units: Units) -> Tensor:
    """Compute the gated FFN with some of its hidden units."""
    gate = mlp.act_fn(outputs(mlp.gate_proj, rows, units))
    return inputs(mlp.down_proj, gate * outputs(mlp.up_proj, rows, units), units)


@torch.no_grad()
def _most_active(mlp: Any, rows: Tensor, count: int, probe: int) -> Tensor:
    """Return the `count` hidden units with the largest mean absolute activation over some rows of
    an image.
    """
    places = torch.tensor(probed_rows(len(rows), probe)).to(rows.device, non_blocking=True)
    some = rows.index_select(0, places)
    active = mlp.act_fn(mlp.gate_proj(some)) * mlp.up_proj(some)
    count = min(count, active.shape[1])
    return active.float().abs().mean(0).topk(count).indices.sort().values


def _padded(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    """Attend with queries `[n, H, Dh]` to the rows of their samples, as one padded batch."""
    if not len(query):
        return query
    out = _sdpa(query, key, value, queries.take, queries.keys, queries.sees, scaling)
    return out.index_select(0, queries.filled)


def _near(
    query: Tensor, key: Tensor, value: Tensor, near: Sequence[Neighbourhood], scaling: float
) -> Tensor:
    """Attend with queries `[n, H, Dh]` of visual rows to the rows that they see."""
    if len(near) == 1:  # its blocks are in the order of the rows
        return _sdpa(query, key, value, near[0].take, near[0].keys, near[0].sees, scaling)
    out = torch.zeros_like(query)
    for part in near:
        seen = _sdpa(query, key, value, part.take, part.keys, part.sees, scaling)
        out = out.index_copy(0, part.take.flatten(), seen)
    return out


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    take: Tensor,
    keys: Tensor,
    sees: Tensor,
    scaling: float,
) -> Tensor:
    """Call SDPA on rows that are selected by index.

    Args:
        query: Queries `[n, H, Dh]`.
        key: Keys `[m, Hkv, Dh]`.
        value: Values `[m, Hkv, Dh]`.
        take: Indices of the queries, `[b, q]`.
        keys: Indices of the keys and values, `[b, k]`.
        sees: Attention mask, bool `[b, 1, q, k]`.
        scaling: Factor of the scores.

    Returns:
        Attention output `[b * q, H, Dh]`.
    """
    q, k, v = (
        x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
        for x, index in ((query, take), (key, keys), (value, keys))
    )
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=sees, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)
