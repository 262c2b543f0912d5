"""Visual MACs, the papers' measure of cost: what a decoder computes for visual rows.

For n visual rows a layer of width d, key/value width d_kv and FFN width m costs 2nd^2 + 2nd*d_kv
(projections) + 2n^2d (attention among visual rows) + 3ndm (gated FFN); with d_kv = d these are the
papers' 4nd^2 + 2n^2d + 3ndm. What a layer leaves out for visual rows is taken off. Text rows and
text-to-visual pairs are not counted here, but in `flops.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpn.tokens import LayerPlan, Trace, Work


@dataclass(frozen=True)
class TextShape:
    """The sizes of a decoder that its cost follows from.

    Attributes:
        num_layers: L.
        hidden_size: d.
        kv_size: d_kv, width of keys or values over all key/value heads.
        ffn_size: m.
        kv_heads: key/value heads.
        base_rows: uncompressed tokens of an image of its native size in the vision tower, which
            shares are counted against; None: those that enter the decoder.
    """

    num_layers: int
    hidden_size: int
    kv_size: int
    ffn_size: int
    kv_heads: int = 1
    base_rows: int | None = None

    @classmethod
    def of(cls, text_config: Any, base_rows: int | None = None) -> "TextShape":
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
        )

    def layer_macs(
        self,
        rows: int,
        pairs: int | None = None,
        heads: int | None = None,
        ffn: int | None = None,
        probed: int = 0,
    ) -> int:
        """Visual MACs of one layer for `rows` visual rows.

        Args:
            rows: n.
            pairs: of visual rows whose scores are computed; default: n^2.
            heads: key/value heads in which visual rows ask, show values and get an output; keys are
                needed in all. Default: all.
            ffn: hidden units of the FFN; default: all.
            probed: rows for which every hidden unit is computed besides, to choose among them.
        """
        d, m = self.hidden_size, self.ffn_size if ffn is None else ffn
        pairs = rows * rows if pairs is None else pairs
        used = self.kv_heads if heads is None else heads
        by_heads = rows * (2 * d * d + d * self.kv_size) + 2 * pairs * d
        by_rows = rows * (d * self.kv_size + 3 * d * m) + 2 * probed * d * self.ffn_size
        return by_rows + by_heads * used // self.kv_heads

    def visual_macs(self, rows_per_layer: Sequence[int]) -> int:
        """Visual MACs of all layers, given the visual rows that enter each."""
        return sum(map(self.layer_macs, rows_per_layer))

    def full_macs(self, entering: int) -> int:
        """Visual MACs of an image without any compression, of which `entering` rows enter."""
        return self.num_layers * self.layer_macs(self.base_rows or entering)


def layer_macs(text: TextShape, plan: LayerPlan | None, work: Work) -> int:
    """Visual MACs of a layer that follows a plan, see `TextShape.layer_macs`."""
    if plan is None:
        return text.layer_macs(work.rows, work.pairs)
    heads = None if plan.heads is None else len(plan.heads)
    return text.layer_macs(work.rows, work.pairs, heads, plan.ffn, work.probed)


def visual_macs(trace: Trace, sample: int, text: TextShape) -> int:
    """Visual MACs of one sample of a forward pass."""
    layers = zip(trace.plans, trace.work, strict=True)
    return sum(layer_macs(text, plan, work[sample]) for plan, work in layers)


def visual_macs_ratio(trace: Trace, text_config: Any) -> list[float]:
    """Each sample's visual MACs against those of the vision tower's uncompressed tokens.

    NaN for samples without an image, which have no visual work.
    """
    text = TextShape.of(text_config)
    return [
        visual_macs(trace, b, text) / (text.num_layers * text.layer_macs(base))
        if base
        else float("nan")
        for b, base in enumerate(trace.base_rows)
    ]
