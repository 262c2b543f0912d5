"""What the methods share whose rows all stay, but get less in some layers."""

from collections.abc import Sequence

from dpn.budget import TextShape
from dpn.routers._strength import StrengthRouter
from dpn.routers.base import (
    LayerPlan,
    RoutingContext,
    layer_macs,
    pairs_within,
)
from dpn.tokens import Grid, PackedTokens


class PlannedRouter(StrengthRouter):
    """Follows the same plan for every sample at its layers.

    Args:
        layers: 0-based; default: all.
        strength: which the plan follows from, see `StrengthRouter`.
        bounds: see `StrengthRouter`.
        keep: see `StrengthRouter`.
        text: see `Router`.
        grid: see `Router`.
    """

    def __init__(
        self,
        layers: Sequence[int] | None,
        strength: float,
        bounds: tuple[float, float],
        keep: float | None,
        *,
        text: TextShape,
        grid: Grid,
    ):
        self.layers = tuple(range(text.num_layers)) if layers is None else tuple(layers)
        super().__init__(strength, bounds, keep, text=text, grid=grid)
        self.plan = self.plan_of(self.strength)

    def plan_of(self, strength: float) -> LayerPlan:
        """What the layers do."""
        raise TypeError(f"{type(self).__name__} does not say what its layers leave out")

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """See `Router.within`."""
        return self.plan if layer in self.layers else None

    def share(self, strength: float) -> float:
        """Share of visual MACs of an image of native size."""
        plan, rows = self.plan_of(strength), self.grid[0] * self.grid[1]
        pairs = rows * rows if plan.radius is None else pairs_within(plan.radius, self.grid)
        others = self.text.num_layers - len(self.layers)
        macs = len(self.layers) * layer_macs(self.text, plan, rows, pairs)
        return (macs + others * self.text.layer_macs(rows)) / self.text.full_macs(rows)

    def check(self) -> list[str]:
        """Layers, strength and keep that can not be."""
        problems, last = super().check(), self.text.num_layers - 1
        if any(not 0 <= layer <= last for layer in self.layers):
            problems.append(
                f"router.layers={list(self.layers)} must lie between 0 and {last} in this decoder."
            )
        return problems
