"""`loss=auto`: which loss a run takes that names none."""

from dataclasses import dataclass
from typing import Any

from dpn.losses.base import Reduction
from dpn.routers.base import Router


@dataclass
class AutoLoss:
    """Section `loss` of `loss=auto`: budget for dpe if it has a keep, else hinge; language for
    routers without gates; each with its defaults.

    Attributes:
        keep: what `router.keep` of dpe is where it is not given; None leaves it at the hinge.
        reduction: see `RoutingLoss`.
    """

    keep: float | None = None
    reduction: Reduction = "global"

    def choose(self, router: type[Router], keep: float | None) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the loss."""
        if not router.calibrated:
            name = "language"
        else:
            name = "hinge" if keep is None else "budget"
        return name, {"reduction": self.reduction}
