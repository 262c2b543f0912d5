"""Several routers, one after the other, e.g. `fastv` early and `vtw` deep in the decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from dpn import routers as family
from dpn.cost import Unreachable
from dpn.routers._joined import JoinedRouter
from dpn.routers.base import RouterSizes


class ChainRouter(JoinedRouter):
    """Applies every member before and after each layer, in their order.

    Args:
        routers: sections like that of a router alone, each with a `name`; with `positions`, where
            they have them, that are the same for all.
        keep: must stay null; members may have one each, which counts what they do alone.
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
        """See `Router.inline_files`; every member's."""
        return {**arguments, "routers": [family.inline_files(s) for s in arguments["routers"]]}

    def check(self) -> list[str]:
        """What is wrong with a member, or between them."""
        problems: list[str] = []
        if self.keep is not None:
            sentence = (
                f"router.keep={self.keep} of a chain is not shared out; set router.routers[i].keep"
                " of its members instead."
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
                    f"router.routers[{number}].keep={member.keep} would be met by calibration,"
                    " which a chain has not; set it to null."
                )
            problems += [f"router.routers[{number}]: {problem}" for problem in member.check()]
        return problems
