"""Routing losses: what is added to the language loss, from the trace of a forward pass."""

from dpn.losses.base import RoutingLoss
from dpn.parts import Family

_family = Family("dpn.losses", RoutingLoss)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["RoutingLoss", "build", "names", "resolve"]
