"""A share of visual MACs as a target: whether a method can reach it, and at which setting."""

from collections.abc import Callable


class Unreachable(str):
    """A sentence about a share that is asked for and that a method can not spend."""


def check_share(
    key: str,
    keep: float | None,
    reach: Callable[[], tuple[float, float]],
    tolerance: float,
    way_out: str,
) -> list[str]:
    """A sentence if a share is none, or can not be spent.

    Args:
        key: of the config.
        keep: its value; None is fine.
        reach: gives the smallest and largest share that can be spent.
        tolerance: how far beyond them is near enough.
        way_out: what else may be changed.
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
        Unreachable(f"{key}={keep} can not be reached, only {possible}; take that, or {way_out}.")
    ]


def solve_for_keep(keep: float, share: Callable[[float], float], low: float, high: float) -> float:
    """The parameter of a method at which its share of visual MACs is `keep`.

    Args:
        keep: the share asked for.
        share: what the method spends at a parameter; never falls, or never rises, from `low` to
            `high`.
        low: smallest parameter.
        high: largest parameter.

    Returns:
        The parameter by bisection; the better end where the share is out of reach.
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
