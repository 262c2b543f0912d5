"""FLOPs and cache bytes, computed from a config and a trace without running anything.

There are two measures of a prefill, which must not be mixed:

* visual MACs (`macs.py`), the papers' convention: visual rows in the decoder only;
* prefill FLOPs, with one fused multiply-add = 2: vision tower, projector, decoder including text
  rows, and the language head.

Causal attention is counted as the full square of its rows, as in torch's FLOP counter; rows that
are computed to pad samples or tiles to the same length are not counted. The trace is
that of a forward pass, or of `dpn.measure.dry_run.prefill`, which needs no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpn.cost.macs import TextShape, layer_macs
from dpn.tokens import LayerPlan, Trace, Work


@dataclass(frozen=True)
class LayerCost:
    """Cost of one decoder layer for one sample.

    Attributes:
        visual_macs: Visual MACs, see `macs.py`.
        linear_flops: FLOPs of the projections and the FFN in a prefill.
        last_flops: The part of `linear_flops` that belongs to the last matrix product.
        attention_flops: FLOPs of queries times keys and of scores times values in a prefill.
        cached_rows: Number of rows whose keys and values are cached.
        kv_numbers: Number of scalars in these keys and values.
        decode_flops: FLOPs of the first token after the prompt.
        row_flops: FLOPs that one more cached row adds to a decoding step.
    """

    visual_macs: int
    linear_flops: int
    last_flops: int
    attention_flops: int
    cached_rows: int
    kv_numbers: int
    decode_flops: int
    row_flops: int


@dataclass(frozen=True)
class Cost:
    """Cost of one sample.

    Attributes:
        vision_flops: FLOPs of the vision tower.
        projector_flops: FLOPs of the projector.
        layers: Cost of each decoder layer.
        score_flops: FLOPs of what is read without a gradient: attention scores that routers read,
            see `score_flops`, and questions that projectors read.
        head_flops: FLOPs of the language head for one row.
    """

    vision_flops: int
    projector_flops: int
    layers: tuple[LayerCost, ...]
    score_flops: int
    head_flops: int

    @property
    def visual_macs(self) -> int:
        """Visual MACs of all layers, see `macs.py`."""
        return sum(layer.visual_macs for layer in self.layers)

    @property
    def decoder_flops(self) -> int:
        """FLOPs of the decoder layers in a prefill."""
        return sum(layer.linear_flops + layer.attention_flops for layer in self.layers)

    @property
    def prefill_flops(self) -> int:
        """FLOPs of the whole model up to the first new token."""
        parts = self.vision_flops + self.projector_flops + self.decoder_flops
        return parts + self.score_flops + self.head_flops

    @property
    def decode_flops(self) -> int:
        """FLOPs of the first decoding step after the prefill."""
        return self.head_flops + sum(layer.decode_flops for layer in self.layers)

    def answer_flops(self, new_tokens: int) -> int:
        """Return the FLOPs of an answer: the prefill, which gives its first token, and a decoding
        step for each further token.
        """
        later = new_tokens - 1
        grown = later * (later - 1) // 2 * sum(layer.row_flops for layer in self.layers)
        return self.prefill_flops + later * self.decode_flops + grown

    def kv_bytes(self, number_bytes: int) -> int:
        """Return the bytes of the key/value cache after the prompt.

        Args:
            number_bytes: Bytes of one scalar, e.g. 2 for bf16.
        """
        return number_bytes * sum(layer.kv_numbers for layer in self.layers)

    def training_flops(self, supervised: int, checkpoint_layers: bool = False) -> int:
        """Return the FLOPs of a forward and backward pass that trains every part.

        A backward pass costs twice its forward pass: gradients of inputs and gradients of weights.
        Checkpointed layers are computed again, except their last matrix product, which no gradient
        needs. For the vision tower that product is counted nevertheless, and so is the gradient of
        the pixels: less than 0.5 % of the total with LLaVA-1.5-7B.

        Args:
            supervised: Number of text rows that have logits.
            checkpoint_layers: Whether the layers of tower and decoder are recomputed.
        """
        once = self.vision_flops + self.projector_flops + self.decoder_flops
        once += supervised * self.head_flops
        last = sum(layer.last_flops for layer in self.layers)
        again = self.vision_flops + self.decoder_flops - last
        return 3 * once + self.score_flops + checkpoint_layers * again


def costs(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[Cost]:
    """Return the cost of each sample of a forward pass.

    Args:
        model: A `DPNForConditionalGeneration` on any device; its tower and projector count their
            own FLOPs.
        trace: Trace of the pass.
        text_columns: Number of columns of each sample that are neither padding nor `<image>`.
    """
    config = model.config.text_config
    found = []
    questions = trace.question_rows or (0,) * len(text_columns)
    for b, text in enumerate(text_columns):
        read = decoder_flops([questions[b]] * config.num_hidden_layers, config)
        grids = list(zip(trace.tower_grids[b], trace.grids[b], strict=True))
        planned = zip(trace.work, trace.plans, strict=True)
        found.append(
            Cost(
                sum(model.vision.flops(model.projector.tower_grid(grid)) for grid, _ in grids),
                sum(model.projector.flops(grid, after) for grid, after in grids),
                tuple(layer_cost(text, work[b], plan, config) for work, plan in planned),
                read + sum(score_flops(*asked[b], config) for asked in trace.score_reads),
                head_flops(1, config),
            )
        )
    return found


def text_flops(trace: Trace, sample: int, text_rows: int, text_config: Any) -> int:
    """Return the FLOPs of one sample's prefill in the text model: its layers, the attention scores
    that routers read, and the language head for one row.

    Args:
        trace: Trace of the prefill.
        sample: Index of the sample.
        text_rows: Number of its text rows.
        text_config: Hugging Face text config.
    """
    planned = zip(trace.work, trace.plans, strict=True)
    layers = [layer_cost(text_rows, work[sample], plan, text_config) for work, plan in planned]
    scores = sum(score_flops(*read[sample], text_config) for read in trace.score_reads)
    computed = sum(layer.linear_flops + layer.attention_flops for layer in layers)
    return computed + scores + head_flops(1, text_config)


def prefill_flops(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[int]:
    """Return the FLOPs of each sample's prefill, see `costs`."""
    return [cost.prefill_flops for cost in costs(model, trace, text_columns)]


def layer_cost(text_rows: int, work: Work, plan: LayerPlan | None, text_config: Any) -> LayerCost:
    """Return the cost of one sample in one decoder layer.

    Args:
        text_rows: Number of text rows.
        work: Work for the visual rows.
        plan: The layer's plan.
        text_config: Hugging Face text config.
    """
    shape, q = TextShape.from_config(text_config), query_width(text_config)
    d, m, kv = shape.hidden_size, shape.ffn_size, shape.kv_size
    used = shape.kv_heads if plan is None or plan.heads is None else len(plan.heads)
    units = m if plan is None or plan.ffn is None else plan.ffn
    rows = work.rows
    # Queries, values and outputs in the heads in use; keys are computed in all heads.
    by_heads = 2 * rows * (2 * d * q + d * kv) * used // shape.kv_heads
    linear = 2 * rows * (d * kv + 3 * d * units) + 4 * work.probed * d * m + by_heads
    pairs = 4 * (work.text_pairs + work.pairs) * q * used // shape.kv_heads
    cached = text_rows + rows
    return LayerCost(
        visual_macs=layer_macs(shape, plan, work),
        linear_flops=linear + text_rows * _linear_flops(text_config),
        last_flops=2 * d * (rows * units + text_rows * m),
        attention_flops=pairs + 4 * text_rows * cached * q,
        cached_rows=cached,
        kv_numbers=2 * cached * kv,
        decode_flops=_linear_flops(text_config) + 4 * (cached + 1) * q,
        row_flops=4 * q,
    )


def _linear_flops(text_config: Any) -> int:
    """Return the FLOPs of a layer's projections and FFN for one row."""
    shape = TextShape.from_config(text_config)
    projections = query_width(text_config) + shape.kv_size
    return 2 * shape.hidden_size * (2 * projections + 3 * shape.ffn_size)


def query_width(text_config: Any) -> int:
    """Return the width of the queries over all heads."""
    heads = text_config.num_attention_heads
    return heads * (getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)


def score_flops(queries: int, rows: int, text_config: Any) -> int:
    """Return the FLOPs of one read of attention scores, see `RoutingContext.attention_scores`.

    Counts the projections of the queries and of all keys, and the products of both.

    Args:
        queries: Number of query rows of a sample.
        rows: Number of all rows of the sample.
        text_config: Hugging Face text config.
    """
    shape, q = TextShape.from_config(text_config), query_width(text_config)
    d = shape.hidden_size
    return 2 * (queries * d * q + rows * d * shape.kv_size + queries * rows * q)


def decoder_flops(rows_per_layer: Sequence[int], text_config: Any) -> int:
    """Return the prefill FLOPs of one sample's decoder layers, given its text and visual rows in
    each layer.
    """
    q, linear = query_width(text_config), _linear_flops(text_config)
    return sum(rows * linear + 4 * rows * rows * q for rows in rows_per_layer)


def head_flops(rows: int, text_config: Any) -> int:
    """Return the FLOPs of the language head for a number of rows; a prefill needs one row per
    sample.
    """
    return 2 * rows * text_config.hidden_size * text_config.vocab_size


def append_flops(text_rows: int, held: Sequence[int], text_config: Any) -> int:
    """Return the FLOPs of appending text to a cache, including one row of the language head.

    Args:
        text_rows: Number of rows appended to each layer; 1 for a new token.
        held: Number of rows that each layer's cache held before.
        text_config: Hugging Face text config.
    """
    alone = decoder_flops([text_rows] * len(held), text_config)
    seen = 4 * text_rows * sum(held) * query_width(text_config)
    return head_flops(1, text_config) + alone + seen
