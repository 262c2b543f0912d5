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
        text.visual_share(rows, base) if base else float("nan")
        for rows, base in zip(zip(*trace.visual_rows, strict=True), trace.base_rows, strict=True)
    ]


def decoder_flops(rows_per_layer: Sequence[int], text_config: Any) -> int:
    """Prefill FLOPs of one sample's decoder layers, given all its rows in each layer."""
    text = TextShape.of(text_config)
    d = text.hidden_size
    heads = text_config.num_attention_heads
    q_size = heads * (getattr(text_config, "head_dim", None) or d // heads)
    linear = 2 * d * q_size + 2 * d * text.kv_size + 3 * d * text.ffn_size
    return sum(2 * n * linear + 4 * n * n * q_size for n in rows_per_layer)


def head_flops(rows: int, text_config: Any) -> int:
    """FLOPs of the language head for so many rows; prefill needs one per sample."""
    return 2 * rows * text_config.hidden_size * text_config.vocab_size


def prefill_flops(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[int]:
    """FLOPs of each sample's prefill: vision tower, projector, decoder and one row of the head.

    Args:
        model: a `DPNForConditionalGeneration` (its parts tell their own cost).
        trace: of a forward pass.
        text_columns: columns of each sample that are neither padding nor `<image>`.
    """
    config = model.config.text_config
    per_sample = []
    for b, text in enumerate(text_columns):
        rows = [layer[b] + text for layer in trace.visual_rows]
        flops = decoder_flops(rows, config) + head_flops(1, config)
        for grid, after in zip(trace.tower_grids[b], trace.grids[b], strict=True):
            flops += model.vision.flops(model.projector.seen(grid))
            flops += model.projector.flops(grid, after)
        per_sample.append(flops)
    return per_sample
