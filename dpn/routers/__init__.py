"""What happens to visual tokens inside the decoder: one method, one file."""

from dpn.parts import Family
from dpn.routers.base import Decision, Router, RoutingContext, Trace

_family = Family("dpn.routers", Router)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["Decision", "Router", "RoutingContext", "Trace", "build", "names", "resolve"]
