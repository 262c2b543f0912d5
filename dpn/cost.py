"""FLOPs from a configuration and the rows that a router left, without running anything.

Two numbers, never to be mixed:

* visual MACs (`dpn.budget`), the papers' convention, visual rows of the decoder only;
* prefill FLOPs, with one fused multiply-add = 2: vision tower, projector, decoder with text rows,
and the head.

Causal attention is counted as the full square of its rows, as torch's FLOP counter does.
"""

from collections.abc import Sequence
from typing import Any

from dpn.budget import TextShape
from dpn.layer_plan import LayerPlan, Work
from dpn.routers.base import Trace


def visual_macs(rows_per_layer: Sequence[Sequence[int]], text_config: Any) -> list[int]:
    """Visual MACs of each sample.

    Args:
        rows_per_layer: visual rows that enter each layer, per layer one number per sample.
        text_config: Hugging Face text config.
    """
    text = TextShape.of(text_config)
    return [text.visual_macs(rows) for rows in zip(*rows_per_layer, strict=True)]


def visual_macs_ratio(trace: Trace, text_config: Any) -> list[float]:
    """Each sample's visual MACs against those of the vision tower's uncompressed tokens.

    NaN for samples without an image, which have no visual work.
    """
    text = TextShape.of(text_config)
    return [
        trace.visual_macs(b, text) / (text.num_layers * text.layer_macs(base))
        if base
        else float("nan")
        for b, base in enumerate(trace.base_rows)
    ]


def layer_flops(text_rows: int, work: Work, plan: LayerPlan | None, text_config: Any) -> int:
    """Prefill FLOPs of one sample in one decoder layer.

    Args:
        text_rows: rows of text.
        work: what is computed for visual rows.
        plan: what the layer does for visual rows.
        text_config: Hugging Face text config.
    """
    shape = TextShape.of(text_config)
    d, m, kv = shape.hidden_size, shape.ffn_size, shape.kv_size
    heads = text_config.num_attention_heads
    q = heads * (getattr(text_config, "head_dim", None) or d // heads)
    used = shape.kv_heads if plan is None or plan.heads is None else len(plan.heads)
    units = m if plan is None or plan.ffn is None else plan.ffn
    text = 2 * text_rows * (2 * d * q + 2 * d * kv + 3 * d * m)
    rows = work.rows
    text += 4 * text_rows * (text_rows + rows) * q
    visual = 2 * rows * (2 * d * q + d * kv) + 4 * (work.text_pairs + work.pairs) * q
    visual = visual * used // shape.kv_heads  # keys are needed in all heads
    return text + visual + 2 * rows * (d * kv + 3 * d * units) + 4 * work.probed * d * m


def score_flops(queries: int, rows: int, text_config: Any) -> int:
    """FLOPs of looking at the attention of some queries to all rows of a sample: their queries, all
    keys, and the products of both.
    """
    shape = TextShape.of(text_config)
    heads, d = text_config.num_attention_heads, shape.hidden_size
    q = heads * (getattr(text_config, "head_dim", None) or d // heads)
    return 2 * (queries * d * q + rows * d * shape.kv_size + queries * rows * q)


def decoder_flops(rows_per_layer: Sequence[int], text_config: Any) -> int:
    """Prefill FLOPs of one sample's decoder layers, given all its rows in each layer."""
    return sum(layer_flops(n, Work(0, 0), None, text_config) for n in rows_per_layer)


def head_flops(rows: int, text_config: Any) -> int:
    """FLOPs of the language head for so many rows; prefill needs one per sample."""
    return 2 * rows * text_config.hidden_size * text_config.vocab_size


def prefill_flops(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[int]:
    """FLOPs of each sample's prefill: vision tower, projector, decoder with the attention that its
    router looked at, and one row of the head.

    Args:
        model: a `DPNForConditionalGeneration` (its parts tell their own cost).
        trace: of a forward pass.
        text_columns: columns of each sample that are neither padding nor `<image>`.
    """
    config = model.config.text_config
    per_sample = []
    for b, text in enumerate(text_columns):
        flops = head_flops(1, config) + sum(
            layer_flops(text, work[b], plan, config)
            for work, plan in zip(trace.work, trace.plans, strict=True)
        )
        flops += sum(score_flops(*asked[b], config) for asked in trace.asked)
        for grid, after in zip(trace.tower_grids[b], trace.grids[b], strict=True):
            flops += model.vision.flops(model.projector.seen(grid))
            flops += model.projector.flops(grid, after)
        per_sample.append(flops)
    return per_sample


def append_flops(text_rows: int, held: Sequence[int], text_config: Any) -> int:
    """FLOPs of text that is appended to a cache, and of one row of the head.

    Args:
        text_rows: appended to each layer.
        held: rows that each layer's cache held before.
        text_config: Hugging Face text config.
    """
    shape, heads = TextShape.of(text_config), text_config.num_attention_heads
    q = heads * (getattr(text_config, "head_dim", None) or shape.hidden_size // heads)
    alone = decoder_flops([text_rows] * len(held), text_config)
    return head_flops(1, text_config) + alone + 4 * text_rows * sum(held) * q
