"""Visual features to visual tokens: how many tokens enter the decoder; one projector, one file."""

from dpn.common.registry import Registry
from dpn.projectors.base import Projector

_registry = Registry("dpn.projectors", Projector)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = ["Projector", "build", "names", "resolve"]
