"""PyramidDrop (arXiv 2410.17247): drops half of the visual rows at every quarter of the decoder."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from dpn.common.ranges import Share
from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class PyramidDropRouter(DroppingRouter):
    """Before some layers, drops the visual rows that the last instruction token attends to least.

    The score of a row is the attention that the last instruction token gives it in the layer about
    to run, averaged over heads and without gradient. After s of these layers int(n * ratio^s) of n
    rows are left (`pdrop_rank_drop` of Cooperx521/PyramidDrop). Training drops rows in the same
    way. One difference is deliberate: the release averages over the tokens before all answers of a
    conversation, of which the later ones follow answers; here only the token before the first
    answer is used. The release has one image per sample; here each image is pruned by itself.

    Args:
        layers: Layers before which rows are dropped; default: at each quarter, 8, 16 and 24 of 32.
        ratio: Share of the rows that is kept at each of them.
        positions: `renumber`, as released, or `keep`.
        keep: Target share of visual MACs, met by choosing the ratio.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        ratio: Share = 0.5,
        positions: Positions = "renumber",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        quarters = [sizes["text"].num_layers * k // 4 for k in (1, 2, 3)]
        self.layers = quarters if layers is None else list(layers)
        super().__init__("pre", positions, ratio, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """Share of the rows at each depth, a power of the ratio."""
        return {layer: strength**cut for cut, layer in enumerate(self.layers, start=1)}

    def check(self) -> list[str]:
        if len(set(self.layers)) < len(self.layers):
            return [f"router.layers={self.layers} must be ascending without repeats."]
        return super().check()

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention that each row gets from the last instruction row in the layer about to run."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))
