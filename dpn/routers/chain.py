"""Several routers combined, e.g. `fastv` early and `vtw` deep in the decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from dpn import routers as family
from dpn.cost import Unreachable
from dpn.routers._joined import JoinedRouter
from dpn.routers.base import RouterSizes


class ChainRouter(JoinedRouter):
    """Applies all members before and after each layer, in order.

    Args:
        routers: Config section of each member, with its `name`; all members must have the same
            `positions`.
        keep: Must be null; each member may have its own, which counts the member's work alone.
    """

    meets_keep = "never"

    def __init__(
        self,
        routers: Sequence[Mapping[str, Any]],
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        members = [family.build(**section, **sizes) for section in routers]
        super().__init__(members, **sizes)
        self.keep = keep

    @classmethod
    def inline_files(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {**arguments, "routers": [family.inline_files(s) for s in arguments["routers"]]}

    def check(self) -> list[str]:
        problems: list[str] = []
        if self.keep is not None:
            sentence = (
                f"router.keep={self.keep} has no meaning for a chain; set router.routers[i].keep of"
                " its members instead."
            )
            problems.append(Unreachable(sentence))
        if len({member.positions for member in self.members}) > 1:
            found = [f"{type(m).__name__} {m.positions}" for m in self.members]
            problems.append(
                f"The members of a chain number rows differently ({', '.join(found)}); give all of"
                " them the same `positions`."
            )
        for number, member in enumerate(self.members):
            if member.calibrated and member.keep is not None:
                problems.append(
                    f"router.routers[{number}].keep={member.keep} needs calibration, which a chain"
                    " does not support; set it to null."
                )
            problems += [f"router.routers[{number}]: {problem}" for problem in member.check()]
        return problems
