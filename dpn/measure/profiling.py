"""Time of a pass by part of the model.

PyTorch's profiler measures every operation. While it runs, calls of the parts carry their names: an
operation belongs to the innermost part around it, and an operation of the backward pass to the part
of its forward operation. The rest of the time is the host's: Python and, on a GPU, waiting. The
profiler itself slows the host down.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from dpn.common import marks
from dpn.metrics.speed import now

PARTS = (
    *("vision", "projector", "router", "pooling", "attention", "FFN", "norms", "head", "other"),
    "host",
)
#: Parts of the text model by the end of their modules' names.
_MODULES = {"self_attn": "attention", "mlp": "FFN", "norm": "norms", "layernorm": "norms"}


def profile(contender: Any, call: Callable[[Any], object], rounds: int = 3) -> dict[str, float]:
    """Seconds of each of `PARTS` in one call.

    Args:
        contender: Contender to profile, see `dpn.measure.contenders`.
        call: Function of the contender to measure.
        rounds: Number of measured calls, after an unmeasured one; the shortest counts.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler prints a line
    with ExitStack() as stack:
        stack.enter_context(marks.recording())
        for module, method, part in _calls(contender):
            stack.enter_context(_marked(module, method, part))
        call(contender)
        found = [_once(contender, call) for _ in range(rounds)]
    return min(found, key=lambda seconds: sum(seconds.values()))


def _once(contender: Any, call: Callable[[Any], object]) -> dict[str, float]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        start = now()
        call(contender)
        whole = now() - start
    events = profiler.events() or []
    on_gpu = any(event.self_device_time_total for event in events)
    seconds = dict.fromkeys(PARTS, 0.0)
    for event, part in by_part(events):
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[part] += took / 1e6
    seconds["host"] = max(0.0, whole - sum(seconds.values()))
    return seconds


def _calls(contender: Any) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules whose calls are marked while a profile is taken: module, method, part of the model.

    Everything else is marked where it is defined, see `dpn.common.marks`.
    """
    for part in ("vision", "projector", "head"):
        yield contender.parts[part], "forward", part
    for name, module in contender.parts["text"].named_modules():
        for end, part in _MODULES.items():
            if name.endswith(end):
                yield module, "forward", part
                break
    if "router" in contender.parts:
        yield contender.parts["router"], "at", "router"


@contextmanager
def _marked(module: nn.Module, method: str, part: str) -> Iterator[None]:
    """Let calls of one module's method carry the name of their part."""
    own = vars(module).get(method)
    setattr(module, method, marks.marked(part)(getattr(module, method)))
    try:
        yield
    finally:
        if own is None:
            delattr(module, method)
        else:
            setattr(module, method, own)


def by_part(events: Iterable[FunctionEvent]) -> Iterator[tuple[FunctionEvent, str]]:
    """Every operation that the host called, with the part it belongs to."""
    events = [event for event in events if event.device_type == DeviceType.CPU]
    parts: dict[int, str] = {}
    # By the number of a node of the graph: the part of the forward operation that made it.
    made_in: dict[tuple[int, int], str] = {}
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):
        part = parts[event.cpu_parent.id] if event.cpu_parent else "other"
        if event.name.startswith(marks.PREFIX):
            part = event.name.removeprefix(marks.PREFIX)
        elif event.name.startswith("autograd::engine::evaluate_function"):
            part = made_in.get((event.fwd_thread or 0, event.sequence_nr), part)
        elif event.sequence_nr >= 0:
            made_in[event.thread, event.sequence_nr] = part
        parts[event.id] = part
        if not event.name.startswith(marks.PREFIX):
            yield event, part
