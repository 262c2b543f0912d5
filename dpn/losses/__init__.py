"""Routing losses, which are computed from a trace and added to the language loss; one file per
loss.

Imports `common`, `tokens` and `routers`.
"""

from dpn.common.registry import Registry
from dpn.losses.base import RoutingLoss

_registry = Registry("dpn.losses", RoutingLoss)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = ["RoutingLoss", "build", "names", "resolve"]
