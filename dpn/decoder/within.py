"""A decoder layer that computes less for visual rows than for text rows: fewer heads, neighbours
or rows before them only, a narrower FFN. What is left out is not computed, nor masked afterwards.
The rows that pass a layer by are none of its pack.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
        text, visual = rows.apart(out)
        out = rows.together(text, visual * plan.scale.to(out.dtype)[:, None])
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
    is_local = plan.radius is not None or plan.window is not None
    if not is_local and plan.heads is None:
        return attention(
            normed[None],
            attention_mask=None,
            position_embeddings=position_embeddings,
            packing=rows.attention,
        )[0].squeeze(0)
    cos, sin = (x[0] for x in position_embeddings)
    # Queries, keys, values, as in the stock layer: ZeRO-2 adds up the gradients of all processes in
    # the order in which they come, and a process without images runs that one.
    if plan.heads is None:
        asks = rows.apart(rotated(attention, "q", normed, cos, sin))
        key = rotated(attention, "k", normed, cos, sin).contiguous()
        value = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
        shown, units = (key, value), None
    else:
        kv = torch.tensor(plan.heads, dtype=torch.long).to(normed.device, non_blocking=True)
        asks, units = _queries_of(attention, normed, kv, rows, (cos, sin))
        key = rotated(attention, "k", normed, cos, sin).contiguous()
        value = _values_of(attention, normed, kv, rows)
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
    """Queries where visual rows have some heads only.

    Args:
        attention: the stock attention module.
        normed: `[N, D]`.
        kv: active key/value heads.
        rows: of the pack.
        rotary: cosines and sines, `[N, Dh]` each.

    Returns:
        Queries of text rows `[Nt, H, Dh]` and of visual rows `[Nv, active, Dh]`; places of the
        active heads in the output.
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
    """Values `[N, Hkv, Dh]`, zero for visual rows in other heads than those of `kv`."""
    size = attention.head_dim
    text, visual = rows.apart(normed)
    values = outputs(attention.v_proj, text).unflatten(-1, (-1, size))
    some = outputs(attention.v_proj, visual, units_of(kv, size)).unflatten(-1, (-1, size))
    none = some.new_zeros(len(some), values.shape[1], size)
    return rows.together(values, none.index_copy(1, kv, some))


def _ffn(mlp: Any, normed: Tensor, plan: LayerPlan, rows: PlannedRows) -> Tensor:
    """The gated FFN; visual rows have `plan.ffn` of its units only."""
    if plan.ffn is None:
        return mlp(normed)
    text, visual = rows.apart(normed)
    if plan.probe is None:
        return rows.together(mlp(text), _narrow(mlp, visual, slice(0, plan.ffn)))
    images = visual.split([span.rows for span in rows.tokens.spans])
    parts = [_narrow(mlp, x, _most_active(mlp, x, plan.ffn, plan.probe)) for x in images if len(x)]
    return rows.together(mlp(text), torch.cat(parts))


def _narrow(mlp: Any, rows: Tensor, units: Units) -> Tensor:
    """The gated FFN with some of its units."""
    gate = mlp.act_fn(outputs(mlp.gate_proj, rows, units))
    return inputs(mlp.down_proj, gate * outputs(mlp.up_proj, rows, units), units)


@torch.no_grad()
def _most_active(mlp: Any, rows: Tensor, count: int, probe: int) -> Tensor:
    """`[count]` units of the largest mean absolute activation over some rows of an image."""
    places = torch.tensor(probed_rows(len(rows), probe)).to(rows.device, non_blocking=True)
    some = rows.index_select(0, places)
    active = mlp.act_fn(mlp.gate_proj(some)) * mlp.up_proj(some)
    count = min(count, active.shape[1])
    return active.float().abs().mean(0).topk(count).indices.sort().values


def _padded(query: Tensor, key: Tensor, value: Tensor, queries: Queries, scaling: float) -> Tensor:
    """`[n, H, Dh]` queries over the rows of their samples, as one padded batch."""
    if not len(query):
        return query
    out = _sdpa(query, key, value, queries.take, queries.keys, queries.sees, scaling)
    return out.index_select(0, queries.filled)


def _near(
    query: Tensor, key: Tensor, value: Tensor, near: Sequence[Neighbourhood], scaling: float
) -> Tensor:
    """`[n, H, Dh]` queries of visual rows over what they see."""
    if len(near) == 1:  # lines in the order of the rows
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
    """`[n, H, Dh]` queries and `[m, Hkv, Dh]` keys and values, taken by `[b, q]` and `[b, k]`, to
    `[b * q, H, Dh]`.
    """
    q, k, v = (
        x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
        for x, index in ((query, take), (key, keys), (value, keys))
    )
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=sees, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(0, 1)
