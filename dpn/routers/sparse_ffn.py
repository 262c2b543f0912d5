"""Sparse visual projection of YOPO (arXiv 2410.06169, section 3): a narrow FFN for visual rows."""

from collections.abc import Sequence
from typing import Unpack

from dpn.routers._planned import PlannedRouter
from dpn.routers.base import RouterSizes
from dpn.tokens import LayerPlan


class SparseFFNRouter(PlannedRouter):
    """Visual rows use the first m / ratio of the FFN's m hidden units, as released.

    Args:
        ratio: Divisor of the number of hidden units; 2 is `mlpcut` of `finetune_yopo.sh`.
        layers: 0-based indices of the layers that do so; default: all, as released.
        keep: Target share of visual MACs, met by choosing the number of units.
    """

    def __init__(
        self,
        ratio: float = 2.0,
        layers: Sequence[int] | None = None,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.ratio = ratio
        width = sizes["text"].ffn_size
        units, bounds = width / max(ratio, 1.0), (1.0, float(width))
        super().__init__(layers, units, bounds, keep, **sizes)

    def plan_of(self, layer: int, strength: float) -> LayerPlan:
        return LayerPlan(ffn=int(strength))

    def check(self) -> list[str]:
        if self.ratio < 1:
            return [f"router.ratio={self.ratio} must be at least 1, which keeps all units."]
        return super().check()
