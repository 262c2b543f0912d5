"""Visual features to visual tokens: how many tokens enter the decoder; one projector, one file."""

from dpn.parts import Family
from dpn.projectors.base import Projector

_family = Family("dpn.projectors", Projector)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["Projector", "build", "names", "resolve"]
