"""FastV (arXiv 2403.06764): drops the visual tokens that the last token attends to least, once."""

from typing import Unpack

from torch import Tensor

from dpn.common.ranges import Share
from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class FastVRouter(DroppingRouter):
    """Before layer K, drops the share R of the visual rows that has the lowest scores.

    The score of a row is the attention that it gets from the last token in layer K - 1, averaged
    over heads; of n rows round(n * (1 - R)) are kept. This is the released in-place mode
    (`modeling_llama.py` of pkunlp-icler/FastV), in which rows keep their positions. The release has
    one image per sample and no training; here each image of a sample is pruned by itself, and the
    last token is that of the instruction.

    Args:
        k: K, number of layers that process all rows, at least 1; the paper's main setting is 2 (3
            in its Hugging Face port).
        ratio: R, share of rows that are dropped; 0.5 (0.75 in the port).
        positions: `keep`, as released, or `renumber`.
        keep: Target share of visual MACs, met by choosing R.
    """

    trainable = False

    def __init__(
        self,
        k: int = 2,
        ratio: Share = 0.5,
        positions: Positions = "keep",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.k = k
        super().__init__("post", positions, ratio, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """Share of the rows at the only depth."""
        return {self.k: 1 - strength}

    def left(self, share: float, entered: int, now: int) -> int:
        """Round, as in the Hugging Face port."""
        return min(now, round(entered * share))

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention that each row gets from the last instruction row in the layer that ran."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))

    def check(self) -> list[str]:
        if self.k < 1:
            return [f"router.k={self.k} must be at least 1: the attention of layer k - 1 is read."]
        return super().check()
