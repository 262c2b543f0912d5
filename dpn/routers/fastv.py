"""FastV (arXiv 2403.06764): after a few layers, drop the visual rows that get least attention."""

from typing import Unpack

from torch import Tensor

from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class FastVRouter(DroppingRouter):
    """Before layer K, removes the share R of the visual rows, those with the lowest score.

    The score is the attention of layer K - 1 from the last token, averaged over heads; n rows leave
    round(n * (1 - R)). This is the released in-place mode (`modeling_llama.py` of
    pkunlp-icler/FastV), which lets rows keep their positions. Left open there: several images of a
    sample are each pruned alone, and in training the last token is that of the instruction.

    Args:
        k: K, layers that see every row, at least 1; the paper's main setting is 2 (3 in its Hugging
            Face port).
        ratio: R, share of rows removed; 0.5 (0.75 in the port).
        positions: `keep`, as released, or `renumber`.
        keep: share of visual MACs to meet instead, by choosing R.
    """

    trainable = False

    def __init__(
        self,
        k: int = 2,
        ratio: float = 0.5,
        positions: Positions = "keep",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.k = k
        super().__init__("post", positions, ratio, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """One cut."""
        return {self.k: 1 - strength}

    def left(self, share: float, entered: int, now: int) -> int:
        """Rounded, as in the port."""
        return min(now, round(entered * share))

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention from the last instruction row in the layer that just ran."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))

    def check(self) -> list[str]:
        """As for all, and K."""
        if self.k < 1:
            return [f"router.k={self.k} must be at least 1: it reads the attention of layer k - 1."]
        return super().check()
