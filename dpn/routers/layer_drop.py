"""Layer drop of YOPO (arXiv 2410.06169, section 3): no visual computation in deep layers."""

from torch import Tensor

from dpn.budget import TextShape
from dpn.routers._dropping import DroppingRouter
from dpn.routers.base import RoutingContext
from dpn.tokens import Grid, PackedTokens


class LayerDropRouter(DroppingRouter):
    """Before layer K drops every visual row; text rows keep their positions.

    The release takes the attention to visual keys away from layer K on. Whether it is shared out
    among the others is left open there; here it is, which is what dropping the rows means.

    Args:
        k: K, default half of the layers, which is `layercut` 20 of the 13B's 40 in
            `finetune_yopo.sh`.
        keep: share of visual MACs to come closest to instead, by choosing K.
    """

    def __init__(
        self, k: int | None = None, keep: float | None = None, *, text: TextShape, grid: Grid
    ):
        layers = text.num_layers
        strength = layers // 2 if k is None else k
        super().__init__("pre", "keep", strength, (0, layers), keep, text=text, grid=grid)

    def schedule(self, strength: float) -> dict[int, float]:
        """Everything, at once."""
        return {round(strength): 0.0}

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """None is better than another."""
        return [tokens.hidden.new_zeros(span.rows) for span in tokens.spans]
