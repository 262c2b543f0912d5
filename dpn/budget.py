"""The ruler of design and papers: MACs that a decoder spends on visual rows.

For n visual rows a layer of width d, key/value width d_kv and FFN width m costs 2nd^2 + 2nd*d_kv
(projections) + 2n^2d (attention among visual rows) + 3ndm (gated FFN); with d_kv = d these are the
papers' 4nd^2 + 2n^2d + 3ndm. What a layer leaves out for visual rows is taken off. Text rows and
text-to-visual pairs are not counted here, but in
`dpn.cost.prefill_flops`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


class Unreachable(str):
    """A sentence about a share that is asked for and that a method can not spend."""


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


def check_share(
    key: str,
    keep: float | None,
    reach: Callable[[], tuple[float, float]],
    tolerance: float,
    way_out: str,
) -> list[str]:
    """A sentence if a share is none, or can not be spent.

    Args:
        key: of the config.
        keep: its value; None is fine.
        reach: gives the smallest and largest share that can be spent.
        tolerance: how far beyond them is near enough.
        way_out: what else may be changed.
    """
    if keep is None:
        return []
    if not 0 < keep <= 1:
        return [f"{key}={keep} must be larger than 0 and at most 1."]
    low, high = reach()
    if low - tolerance <= keep <= high + tolerance:
        return []
    possible = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    return [
        Unreachable(f"{key}={keep} can not be reached, only {possible}; take that, or {way_out}.")
    ]


def meet(keep: float, share: Callable[[float], float], low: float, high: float) -> float:
    """The parameter of a method at which its share of visual MACs is `keep`.

    Args:
        keep: the share asked for.
        share: what the method spends at a parameter; never falls, or never rises, from `low` to
            `high`.
        low: smallest parameter.
        high: largest parameter.

    Returns:
        The parameter by bisection; the better end where the share is out of reach.
    """
    ends = low, high
    rising = share(high) > share(low)
    for _ in range(50):
        middle = (low + high) / 2
        if (share(middle) < keep) == rising:
            low = middle
        else:
            high = middle
    return min(*ends, low, high, key=lambda x: abs(share(x) - keep))
