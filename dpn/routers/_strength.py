"""What the methods share that follow from one number, for which `keep` can stand."""

from typing import Unpack

from dpn.cost import solve_for_keep
from dpn.routers.base import Router, RouterSizes, check_keep


class StrengthRouter(Router):
    """A router with one parameter of its own.

    Args:
        strength: that parameter.
        bounds: its smallest and largest value.
        keep: share of visual MACs to come closest to instead, by a search for the strength.
    """

    def __init__(
        self,
        strength: float,
        bounds: tuple[float, float],
        keep: float | None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(**sizes)
        self.keep, self.bounds = keep, bounds
        self.strength = strength if keep is None else solve_for_keep(keep, self.share, *bounds)

    def share(self, strength: float) -> float:
        """Share of visual MACs of an image of native size."""
        raise TypeError(f"{type(self).__name__} does not count its cost")

    def reach(self) -> tuple[float, float]:
        """The shares at both ends of the method's own parameter."""
        low, high = sorted(map(self.share, self.bounds))
        return low, high

    def check(self) -> list[str]:
        """A strength or a keep that can not be."""
        low, high = self.bounds
        problems = check_keep(self)
        if self.keep is None and not low <= self.strength <= high:
            problems.append(
                f"The router's own parameter is {self.strength}; it must be from {low} to {high}."
            )
        return problems
