"""Visual MACs, the papers' measure of cost: multiply-adds of the decoder for visual rows.

For n visual rows, a layer of width d, query width d_q, key/value width d_kv and FFN width m costs
2nd*d_q + 2nd*d_kv (projections) + 2n^2*d_q (attention among visual rows) + 3ndm (gated FFN); with
d_q = d_kv = d this is the papers' 4nd^2 + 2n^2d + 3ndm. Whatever a layer leaves out for visual rows
is not counted. Text rows and pairs of text and visual rows are counted in `flops.py` only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpn.tokens import LayerPlan, Trace, Work


@dataclass(frozen=True)
class TextShape:
    """Sizes of a text model that determine its visual MACs.

    Attributes:
        num_layers: Number of decoder layers, L.
        hidden_size: Width d.
        kv_size: Width of keys or values over all key/value heads, d_kv.
        ffn_size: Width of the FFN, m.
        kv_heads: Number of key/value heads.
        base_rows: Number of the vision tower's uncompressed tokens for an image of the native size,
            the reference of all shares; None: the number of rows that enter the decoder.
        query_size: Width of the queries over all heads, d_q; None: d.
    """

    num_layers: int
    hidden_size: int
    kv_size: int
    ffn_size: int
    kv_heads: int = 1
    base_rows: int | None = None
    query_size: int | None = None

    @classmethod
    def from_config(cls, text_config: Any, base_rows: int | None = None) -> "TextShape":
        """Read the sizes from a Hugging Face text config."""
        heads = text_config.num_attention_heads
        head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
        return cls(
            text_config.num_hidden_layers,
            text_config.hidden_size,
            kv_heads * head_dim,
            text_config.intermediate_size,
            kv_heads,
            base_rows,
            heads * head_dim,
        )

    def layer_macs(
        self,
        rows: int,
        pairs: int | None = None,
        heads: int | None = None,
        ffn: int | None = None,
        probed: int = 0,
    ) -> int:
        """Return the visual MACs of one layer.

        Args:
            rows: Number of visual rows, n.
            pairs: Number of pairs of visual rows whose attention score is computed; default: n^2.
            heads: Number of key/value heads in which visual rows have queries, values and outputs;
                keys are computed in all heads. Default: all.
            ffn: Number of hidden units of the FFN; default: all.
            probed: Number of rows for which all hidden units are computed in order to choose among
                them.
        """
        d, m = self.hidden_size, self.ffn_size if ffn is None else ffn
        q = self.query_size or d
        pairs = rows * rows if pairs is None else pairs
        used = self.kv_heads if heads is None else heads
        by_heads = rows * (2 * d * q + d * self.kv_size) + 2 * pairs * q
        by_rows = rows * (d * self.kv_size + 3 * d * m) + 2 * probed * d * self.ffn_size
        return by_rows + by_heads * used // self.kv_heads

    def visual_macs(self, rows_per_layer: Sequence[int]) -> int:
        """Return the visual MACs of all layers, given the visual rows that enter each layer."""
        return sum(map(self.layer_macs, rows_per_layer))

    def full_macs(self, entering: int) -> int:
        """Return the visual MACs of an image without any compression.

        Args:
            entering: Number of the image's rows that enter the decoder, used without `base_rows`.
        """
        return self.num_layers * self.layer_macs(self.base_rows or entering)


def layer_macs(text: TextShape, plan: LayerPlan | None, work: Work) -> int:
    """Return the visual MACs of a layer under a plan, see `TextShape.layer_macs`."""
    if plan is None:
        return text.layer_macs(work.rows, work.pairs)
    heads = None if plan.heads is None else len(plan.heads)
    return text.layer_macs(work.rows, work.pairs, heads, plan.ffn, work.probed)


def visual_macs(trace: Trace, sample: int, text: TextShape) -> int:
    """Return the visual MACs of one sample of a forward pass."""
    layers = zip(trace.plans, trace.work, strict=True)
    return sum(layer_macs(text, plan, work[sample]) for plan, work in layers)


def visual_macs_ratio(trace: Trace, text_config: Any) -> list[float]:
    """Return each sample's visual MACs as a share of those that the vision tower's uncompressed
    tokens would cost; NaN for samples without an image.
    """
    text = TextShape.from_config(text_config)
    return [
        visual_macs(trace, b, text) / (text.num_layers * text.layer_macs(base))
        if base
        else float("nan")
        for b, base in enumerate(trace.base_rows)
    ]
