"""Marks that tell a profiler which part of the model an operation belongs to.

While nothing is profiled, a marked function costs one look at a flag, and nothing is recorded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from torch.profiler import record_function

P = ParamSpec("P")
T = TypeVar("T")

PREFIX = "dpn part "
"""Start of the name of every record, before the name of the part."""
_recording = False


def marked(part: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that calls made while `recording` carry the name of a part."""

    def decorate(call: Callable[P, T]) -> Callable[P, T]:
        @wraps(call)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> T:
            if not _recording:
                return call(*args, **kwargs)
            with record_function(PREFIX + part):
                return call(*args, **kwargs)

        return recorded

    return decorate


@contextmanager
def recording() -> Iterator[None]:
    """Let marked functions carry their names while the block runs."""
    global _recording
    _recording = True
    try:
        yield
    finally:
        _recording = False
