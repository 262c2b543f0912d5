"""Projectors turn visual features into the visual tokens that enter the decoder: one file each.

Imports `common`, `tokens`, `cost` and `vision`.
"""

from dpn.common.registry import Registry
from dpn.projectors.base import Projector

_registry = Registry("dpn.projectors", Projector)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = ["Projector", "build", "names", "resolve"]
