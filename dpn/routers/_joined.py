"""What the methods share that are made of others, one after the other."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Unpack

from torch import nn

from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens


class JoinedRouter(Router):
    """Applies every member before and after each layer, in their order.

    Args:
        members: the routers.
    """

    def __init__(self, members: Sequence[Router], **sizes: Unpack[RouterSizes]):
        super().__init__(**sizes)
        self.members: Any = nn.ModuleList(members)
        self.positions = members[0].positions if members else "renumber"

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Every member in turn."""
        for member in self.members:
            tokens = member.at(where, layer, tokens, context)
        return tokens

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """What is left of a layer where every member leaves something out."""
        return joined([member.within(layer, tokens, context) for member in self.members])

    def bound(self, most: bool) -> Router:
        """Every member's stand-in."""
        members = [member.bound(most) for member in self.members]
        other = JoinedRouter(members, **self.sizes)
        other.positions = self.positions
        return other


def joined(plans: Sequence[LayerPlan | None]) -> LayerPlan | None:
    """One plan that leaves out what any of these does."""
    return reduce(lambda one, other: one.joined(other) if one else other, plans, None)
