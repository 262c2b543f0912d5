"""Base class of routers that keep all rows and reduce the work of some layers for them."""

from collections.abc import Sequence
from typing import Unpack

from dpn.cost import TextShape, layer_macs
from dpn.routers._strength import StrengthRouter
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import Block, LayerPlan, PackedTokens, work_of


class PlannedRouter(StrengthRouter):
    """Reduces the work of some layers for visual rows, in the same way for every sample.

    Args:
        layers: 0-based indices of the reduced layers; default: all.
        strength: Parameter that the plans depend on, see `StrengthRouter`.
        bounds: Smallest and largest strength.
        keep: Target share of visual MACs; if given, it determines the strength.
    """

    acts = "within layers"

    def __init__(
        self,
        layers: Sequence[int] | None,
        strength: float,
        bounds: tuple[float, float],
        keep: float | None,
        **sizes: Unpack[RouterSizes],
    ):
        self.layers = tuple(range(sizes["text"].num_layers)) if layers is None else tuple(layers)
        super().__init__(strength, bounds, keep, **sizes)
        self.plans = self.plans_of(self.strength)

    def plan_of(self, layer: int, strength: float) -> LayerPlan | None:
        """Return the plan of one of `layers`; None: the layer is not reduced."""
        raise TypeError(f"{type(self).__name__} does not implement plan_of")

    def plans_of(self, strength: float) -> list[LayerPlan | None]:
        """Return the plan of each layer of the decoder."""
        every = range(self.text.num_layers)
        return [self.plan_of(n, strength) if n in self.layers else None for n in every]

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        return self.plans[layer]

    def share(self, strength: float) -> float:
        macs = sum(native_macs(self.text, plan, self.blocks) for plan in self.plans_of(strength))
        return macs / self.text.full_macs(self.entering)

    def check(self) -> list[str]:
        problems, last = super().check(), self.text.num_layers - 1
        if any(not 0 <= layer <= last for layer in self.layers):
            problems.append(
                f"router.layers={list(self.layers)} must lie between 0 and {last} in this decoder."
            )
        return problems


def native_macs(text: TextShape, plan: LayerPlan | None, blocks: Sequence[Block]) -> int:
    """Return the visual MACs of a layer for all rows of one image of native size."""
    return layer_macs(text, plan, work_of(plan, [block.grid for block in blocks]))
