"""Base class of routers whose cost depends on one parameter, which `keep` can determine."""

from typing import Unpack

from dpn.cost import solve_for_keep
from dpn.routers.base import Router, RouterSizes, check_keep


class StrengthRouter(Router):
    """A router whose cost depends on one parameter, its strength.

    Args:
        strength: Value of the parameter, unless `keep` is given.
        bounds: Smallest and largest value of the parameter.
        keep: Target share of visual MACs; the strength whose share is closest to it is used.
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
        """Return the share of visual MACs at a strength, for an image of native size."""
        raise TypeError(f"{type(self).__name__} does not implement share")

    def reach(self) -> tuple[float, float]:
        low, high = sorted(map(self.share, self.bounds))
        return low, high

    def check(self) -> list[str]:
        low, high = self.bounds
        problems = check_keep(self)
        if self.keep is None and not low <= self.strength <= high:
            problems.append(
                f"The router's own parameter is {self.strength}; it must be from {low} to {high}."
            )
        return problems
