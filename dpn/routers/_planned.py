"""What the methods share whose rows all stay, but get less in some layers."""

from collections.abc import Sequence
from typing import Unpack

from dpn.cost import TextShape, layer_macs
from dpn.routers._strength import StrengthRouter
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import Grid, LayerPlan, PackedTokens, work_of


class PlannedRouter(StrengthRouter):
    """Follows the same plans for every sample.

    Args:
        layers: 0-based ones that leave something out; default: all.
        strength: which the plans follow from, see `StrengthRouter`.
        bounds: see `StrengthRouter`.
        keep: see `StrengthRouter`.
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
        """What one of its layers does."""
        raise TypeError(f"{type(self).__name__} does not say what its layers leave out")

    def plans_of(self, strength: float) -> list[LayerPlan | None]:
        """What each layer of the decoder does."""
        every = range(self.text.num_layers)
        return [self.plan_of(n, strength) if n in self.layers else None for n in every]

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        return self.plans[layer]

    def share(self, strength: float) -> float:
        """Share of visual MACs of an image of native size."""
        rows = self.grid[0] * self.grid[1]
        macs = sum(native_macs(self.text, plan, self.grid) for plan in self.plans_of(strength))
        return macs / self.text.full_macs(rows)

    def check(self) -> list[str]:
        """Layers, strength and keep that can not be."""
        problems, last = super().check(), self.text.num_layers - 1
        if any(not 0 <= layer <= last for layer in self.layers):
            problems.append(
                f"router.layers={list(self.layers)} must lie between 0 and {last} in this decoder."
            )
        return problems


def native_macs(text: TextShape, plan: LayerPlan | None, grid: Grid) -> int:
    """Visual MACs of a layer for all rows of one image."""
    return layer_macs(text, plan, work_of(plan, [grid]))
