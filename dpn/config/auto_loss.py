"""`loss=auto`: which loss a run takes that names none."""

from dataclasses import dataclass
from typing import Any

from dpn import losses
from dpn.losses.base import Reduction
from dpn.routers.base import Router


@dataclass
class AutoLoss:
    """Section `loss` of `loss=auto`: what the router names, e.g. budget for dpe if it has a keep,
    else hinge; language for routers without gates; each with its defaults.

    Attributes:
        reduction: see `RoutingLoss`.
    """

    reduction: Reduction = "global"

    def choose(self, router: type[Router], keep: float | None) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the loss."""
        steering = [n for n in router.losses if keep is not None and losses.resolve(n).needs_keep]
        name = (*steering, *router.losses, "language")[0]
        return name, {"reduction": self.reduction}


def names() -> list[str]:
    """Names that `loss.name` takes."""
    return ["auto", *losses.names()]


def resolve(name: str) -> type[Any]:
    """Class with the arguments of a loss."""
    return AutoLoss if name == "auto" else losses.resolve(name)
