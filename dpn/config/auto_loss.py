"""`loss=auto`: choose the loss by the router.

`names` and `resolve` are those of `dpn.losses` with `auto` added.
"""

from dataclasses import dataclass
from typing import Any

from dpn import losses
from dpn.losses.base import Reduction
from dpn.routers.base import Router


@dataclass
class AutoLoss:
    """Section `loss` of `loss=auto`.

    Choose the first loss that the router lists or, if `router.keep` is set, the first one that
    needs it; for dpe these are hinge and budget. A router without gates lists no losses and gets
    the language loss alone. The chosen loss keeps the defaults of its other arguments.

    Attributes:
        reduction: See `RoutingLoss`.
    """

    reduction: Reduction = "global"

    def choose(self, router: type[Router], keep: float | None) -> tuple[str, dict[str, Any]]:
        """Return name and arguments of the loss for a router class and `router.keep`."""
        steering = [n for n in router.losses if keep is not None and losses.resolve(n).needs_keep]
        name = (*steering, *router.losses, "language")[0]
        return name, {"reduction": self.reduction}


def names() -> list[str]:
    """Return the valid values of `loss.name`."""
    return ["auto", *losses.names()]


def resolve(name: str) -> type[Any]:
    """Return the class whose constructor takes the arguments of section `loss`."""
    return AutoLoss if name == "auto" else losses.resolve(name)
