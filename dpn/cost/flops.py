"""FLOPs and bytes from a configuration and the rows that a router left, without running anything.

Two numbers of a prefill, never to be mixed:

* visual MACs (`macs.py`), the papers' convention, visual rows of the decoder only;
* prefill FLOPs, with one fused multiply-add = 2: vision tower, projector, decoder with text rows,
and the head.

Causal attention is counted as the full square of its rows, as torch's FLOP counter does. Rows come
from the `Trace` of a forward pass, or of `dpn.measure.dry_run.prefill`, which needs no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpn.cost.macs import TextShape, layer_macs
from dpn.tokens import LayerPlan, Trace, Work


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs for one sample.

    Attributes:
        visual_macs: see `macs.py`.
        linear_flops: of a prefill's projections and FFN.
        last_flops: of these, the last matrix product.
        attention_flops: of its products of queries and keys, and of scores and values.
        cached_rows: whose keys and values are kept.
        kv_numbers: these keys and values.
        decode_flops: of the first token after the prompt.
        row_flops: what one more cached row adds to that.
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
    """What one sample costs.

    Attributes:
        vision_flops: of the vision tower.
        projector_flops: of the projector.
        layers: of the decoder.
        score_flops: of the attention that a router looked at, see `score_flops`.
        head_flops: of one row of the language head.
    """

    vision_flops: int
    projector_flops: int
    layers: tuple[LayerCost, ...]
    score_flops: int
    head_flops: int

    @property
    def visual_macs(self) -> int:
        """See `macs.py`."""
        return sum(layer.visual_macs for layer in self.layers)

    @property
    def decoder_flops(self) -> int:
        """Of the decoder's layers in a prefill."""
        return sum(layer.linear_flops + layer.attention_flops for layer in self.layers)

    @property
    def prefill_flops(self) -> int:
        """Of everything until the first new token."""
        parts = self.vision_flops + self.projector_flops + self.decoder_flops
        return parts + self.score_flops + self.head_flops

    @property
    def decode_flops(self) -> int:
        """Of the first token after the prompt."""
        return self.head_flops + sum(layer.decode_flops for layer in self.layers)

    def answer_flops(self, new_tokens: int) -> int:
        """Of a prefill, which gives the first new token, and of the tokens after it."""
        later = new_tokens - 1
        grown = later * (later - 1) // 2 * sum(layer.row_flops for layer in self.layers)
        return self.prefill_flops + later * self.decode_flops + grown

    def kv_bytes(self, number_bytes: int) -> int:
        """Of the key/value cache after the prompt, in numbers of so many bytes."""
        return number_bytes * sum(layer.kv_numbers for layer in self.layers)

    def training_flops(self, supervised: int, checkpoint_layers: bool = False) -> int:
        """Of a forward and backward pass that trains every part.

        A backward pass takes twice its forward pass, for gradients of inputs and of weights. What
        is checkpointed is computed again but for the last product of a layer, which no gradient
        needs. Of the tower, where no one part knows, that product and the gradient of pixels are
        counted too: with LLaVA-1.5-7B less than 0.5 % of all.

        Args:
            supervised: text rows that have logits.
            checkpoint_layers: whether layers of tower and decoder are computed again.
        """
        once = self.vision_flops + self.projector_flops + self.decoder_flops
        once += supervised * self.head_flops
        last = sum(layer.last_flops for layer in self.layers)
        again = self.vision_flops + self.decoder_flops - last
        return 3 * once + self.score_flops + checkpoint_layers * again


def costs(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[Cost]:
    """What each sample of a forward pass costs.

    Args:
        model: a `DPNForConditionalGeneration` (its parts tell their own cost), on any device.
        trace: of the pass.
        text_columns: columns of each sample that are neither padding nor `<image>`.
    """
    config = model.config.text_config
    found = []
    for b, text in enumerate(text_columns):
        grids = list(zip(trace.tower_grids[b], trace.grids[b], strict=True))
        planned = zip(trace.work, trace.plans, strict=True)
        found.append(
            Cost(
                sum(model.vision.flops(model.projector.seen(grid)) for grid, _ in grids),
                sum(model.projector.flops(grid, after) for grid, after in grids),
                tuple(layer_cost(text, work[b], plan, config) for work, plan in planned),
                sum(score_flops(*asked[b], config) for asked in trace.asked),
                head_flops(1, config),
            )
        )
    return found


def prefill_flops(model: Any, trace: Trace, text_columns: Sequence[int]) -> list[int]:
    """FLOPs of each sample's prefill, see `costs`."""
    return [cost.prefill_flops for cost in costs(model, trace, text_columns)]


def layer_cost(text_rows: int, work: Work, plan: LayerPlan | None, text_config: Any) -> LayerCost:
    """Cost of one sample in one decoder layer.

    Args:
        text_rows: rows of text.
        work: what is computed for visual rows.
        plan: what the layer does for visual rows.
        text_config: Hugging Face text config.
    """
    shape, q = TextShape.of(text_config), query_width(text_config)
    d, m, kv = shape.hidden_size, shape.ffn_size, shape.kv_size
    used = shape.kv_heads if plan is None or plan.heads is None else len(plan.heads)
    units = m if plan is None or plan.ffn is None else plan.ffn
    rows = work.rows
    by_heads = 2 * rows * (2 * d * q + d * kv) * used // shape.kv_heads  # keys: in all heads
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
    """FLOPs of a layer's projections and FFN for one row."""
    shape = TextShape.of(text_config)
    projections = query_width(text_config) + shape.kv_size
    return 2 * shape.hidden_size * (2 * projections + 3 * shape.ffn_size)


def query_width(text_config: Any) -> int:
    """Width of the queries over all heads."""
    heads = text_config.num_attention_heads
    return heads * (getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)


def score_flops(queries: int, rows: int, text_config: Any) -> int:
    """FLOPs of looking at the attention of some queries to all rows of a sample: their queries, all
    keys, and the products of both.
    """
    shape, q = TextShape.of(text_config), query_width(text_config)
    d = shape.hidden_size
    return 2 * (queries * d * q + rows * d * shape.kv_size + queries * rows * q)


def decoder_flops(rows_per_layer: Sequence[int], text_config: Any) -> int:
    """Prefill FLOPs of one sample's decoder layers, given all its rows in each layer."""
    q, linear = query_width(text_config), _linear_flops(text_config)
    return sum(rows * linear + 4 * rows * rows * q for rows in rows_per_layer)


def head_flops(rows: int, text_config: Any) -> int:
    """FLOPs of the language head for so many rows; prefill needs one per sample."""
    return 2 * rows * text_config.hidden_size * text_config.vocab_size


def append_flops(text_rows: int, held: Sequence[int], text_config: Any) -> int:
    """FLOPs of text that is appended to a cache, and of one row of the head.

    Args:
        text_rows: appended to each layer; 1 for a new token.
        held: rows that each layer's cache held before.
        text_config: Hugging Face text config.
    """
    alone = decoder_flops([text_rows] * len(held), text_config)
    seen = 4 * text_rows * sum(held) * query_width(text_config)
    return head_flops(1, text_config) + alone + seen
