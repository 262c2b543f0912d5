"""PyramidDrop (arXiv 2410.17247): at every quarter of the decoder, half of the visual rows go."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from dpn.routers._dropping import DroppingRouter, last_instruction_rows, mean_attention
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class PyramidDropRouter(DroppingRouter):
    """Before each of its layers keeps the visual rows that the last instruction token looks at.

    The score is the attention that the layer about to run would give, from the last instruction
    token, averaged over heads and without gradient; after s cuts int(n * ratio^s) of n rows are
    left (`pdrop_rank_drop` of Cooperx521/PyramidDrop). Training drops rows in the same way. One
    difference on purpose: there the released code averages the tokens before every answer of a
    conversation, of which the later ones follow answers; here it is always the one before the
    first. Left open there: several images of a sample are each pruned alone.

    Args:
        layers: where rows are dropped; default: at each quarter, 8, 16 and 24 of 32.
        ratio: share of rows that goes on at each; 0.5.
        positions: `renumber`, as released, or `keep`.
        keep: share of visual MACs to meet instead, by choosing the ratio.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        ratio: float = 0.5,
        positions: Positions = "renumber",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        quarters = [sizes["text"].num_layers * k // 4 for k in (1, 2, 3)]
        self.layers = quarters if layers is None else list(layers)
        super().__init__("pre", positions, ratio, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """A power of the ratio for each layer."""
        return {layer: strength**cut for cut, layer in enumerate(self.layers, start=1)}

    def check(self) -> list[str]:
        """As for all, and that no layer is named twice."""
        if len(set(self.layers)) < len(self.layers):
            return [f"router.layers={self.layers} must be ascending without repeats."]
        return super().check()

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention from the last instruction row in the layer about to run."""
        return mean_attention(tokens, context, last_instruction_rows(tokens, context))
