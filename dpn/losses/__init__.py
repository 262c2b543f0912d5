"""Routing losses: what is added to the language loss, from the trace of a forward pass."""

from dpn.common.registry import Registry
from dpn.losses.base import RoutingLoss

_registry = Registry("dpn.losses", RoutingLoss)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = ["RoutingLoss", "build", "names", "resolve"]
