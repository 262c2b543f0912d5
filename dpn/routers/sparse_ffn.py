"""Sparse visual projection of YOPO (arXiv 2410.06169, section 3): a narrow FFN for visual rows."""

from collections.abc import Sequence

from dpn.cost import TextShape
from dpn.routers._planned import PlannedRouter
from dpn.tokens import Grid, LayerPlan


class SparseFFNRouter(PlannedRouter):
    """Visual rows use the first m / ratio hidden units of the FFN, unranked, as released.

    Args:
        ratio: m is divided by it; 2, `mlpcut` of `finetune_yopo.sh`.
        layers: 0-based; default: all, as released.
        keep: share of visual MACs to meet instead, by choosing the number of units.
    """

    def __init__(
        self,
        ratio: float = 2.0,
        layers: Sequence[int] | None = None,
        keep: float | None = None,
        *,
        text: TextShape,
        grid: Grid,
    ):
        self.ratio = ratio
        units = text.ffn_size / max(ratio, 1.0)
        bounds = (1.0, float(text.ffn_size))
        super().__init__(layers, units, bounds, keep, text=text, grid=grid)

    def plan_of(self, layer: int, strength: float) -> LayerPlan:
        """So many units."""
        return LayerPlan(ffn=int(strength))

    def check(self) -> list[str]:
        """As for all, and a ratio that would widen the FFN."""
        if self.ratio < 1:
            return [f"router.ratio={self.ratio} must be at least 1, which leaves every unit."]
        return super().check()
