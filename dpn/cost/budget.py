"""Target shares of visual MACs: check whether a method can reach one, and solve for its setting."""

from collections.abc import Callable
from typing import Literal

from dpn.common.errors import Unreachable

#: How well a method meets its `keep`, see `dpn.routers.Router.meets_keep`.
MeetsKeep = Literal["exactly", "roughly", "never"]


def check_share(
    key: str,
    keep: float | None,
    reach: Callable[[], tuple[float, float]],
    tolerance: float,
    way_out: str,
) -> list[str]:
    """Check a target share of visual MACs; return a list with one error sentence, or an empty one.

    Args:
        key: Config key, for the sentence.
        keep: Target share; None is valid.
        reach: Function that returns the smallest and largest share that the method can reach.
        tolerance: Distance from these limits that still counts as reachable.
        way_out: Other changes that the sentence suggests.
    """
    if keep is None:
        return []
    if not 0 < keep <= 1:
        return [f"{key}={keep} must be larger than 0 and at most 1."]
    low, high = reach()
    if low - tolerance <= keep <= high + tolerance:
        return []
    possible = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    return [
        Unreachable(f"{key}={keep} cannot be reached, only {possible}; use that, or {way_out}.")
    ]


def solve_for_keep(keep: float, share: Callable[[float], float], low: float, high: float) -> float:
    """Find the parameter of a method at which its share of visual MACs is `keep`, by bisection.

    Args:
        keep: Target share.
        share: Function that returns the share at a parameter; monotonic from `low` to `high`.
        low: Smallest parameter.
        high: Largest parameter.

    Returns:
        The parameter; if the target is out of reach, the end of the range that is closer to it.
    """
    ends = low, high
    rising = share(high) > share(low)
    for _ in range(50):
        middle = (low + high) / 2
        if (share(middle) < keep) == rising:
            low = middle
        else:
            high = middle
    return min(*ends, low, high, key=lambda x: abs(share(x) - keep))
