"""Base class of routers that combine other routers."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Unpack

from torch import nn

from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens


class JoinedRouter(Router):
    """Applies all members before and after each layer, in order.

    Args:
        members: Routers to combine.
    """

    def __init__(self, members: Sequence[Router], **sizes: Unpack[RouterSizes]):
        super().__init__(**sizes)
        self.members: Any = nn.ModuleList(members)
        self.positions = members[0].positions if members else "renumber"

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        for member in self.members:
            tokens = member.at(where, layer, tokens, context)
        return tokens

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        return joined([member.within(layer, tokens, context) for member in self.members])

    def bound(self, most: bool) -> Router:
        members = [member.bound(most) for member in self.members]
        other = JoinedRouter(members, **self.sizes)
        other.positions = self.positions
        return other


def joined(plans: Sequence[LayerPlan | None]) -> LayerPlan | None:
    """Merge plans into one that leaves out everything that any of them leaves out."""
    return reduce(lambda one, other: one.joined(other) if one else other, plans, None)
