"""Live tensor bytes and FLOPs while code runs, with real tensors or fake ones."""

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GIB = 2**30
"""Bytes of a GiB."""
aten = torch.ops.aten
#: Name under which `ResourceMeter` counts cast copies of weights.
COPIES = "weights in another precision"


@dataclass(frozen=True)
class Moment:
    """Counts of a `ResourceMeter`: operations, new storages, FLOPs, and live bytes by kind."""

    operations: int
    storages: int
    flops: int
    live: Counter[str]

    def __sub__(self, earlier: "Moment") -> "Moment":
        live = self.live.copy()
        live.subtract(earlier.live)
        return Moment(
            self.operations - earlier.operations,
            self.storages - earlier.storages,
            self.flops - earlier.flops,
            live,
        )


class ResourceMeter(TorchDispatchMode):
    """Context manager that counts the bytes of live storages, and FLOPs (FMA = 2).

    Args:
        weights: Tensors that are not counted.

    Attributes:
        live: Current bytes by kind: activations, and copies of weights in another precision.
        peak: `live` at the moment when its sum was largest.
        high: `live` when its sum was largest since the caller set it last.
        place: Part of the model that allocates now; set by the caller.
        made_by: Current bytes by kind, by the `place` that allocated them.
        copies: How many more times than once the bytes of a place count in `live`.
        flops: FLOPs so far.
        operations: Operations so far.
        storages: New storages so far.
        forward: Whether the backward pass has not begun; set by the caller.
        inside: Whether a layer is running; set by the caller.
    """

    def __init__(self, weights: Iterable[Tensor] = ()):
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.high: Counter[str] = Counter()
        self.place: Any = None
        self.made_by: defaultdict[Any, Counter[str]] = defaultdict(Counter)
        self.copies: Counter[Any] = Counter()
        self.flops = self.operations = self.storages = 0
        self.forward, self.inside = True, False
        self._weights = weakref.WeakSet(w.untyped_storage() for w in weights)
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(self._weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":  # reads the device of a fake tensor
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if (formula := FORMULAS.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        is_copy = func is aten._to_copy.default and args[0].untyped_storage() in self._weights
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), COPIES if is_copy else "activations")
        return out

    def _add(self, storage: Any, kind: str) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.storages += 1
        self._count(kind, self.place, storage.nbytes())
        weakref.finalize(storage, self._count, kind, self.place, -storage.nbytes())
        if self.live.total() > self.high.total():
            self.high = self.live.copy()
        self._note_peak(self.live)

    def _note_peak(self, live: Counter[str]) -> None:
        if live.total() > self.peak.total():
            self.peak = live.copy()

    def _count(self, kind: str, place: Any, size: int) -> None:
        self.live[kind] += size * (1 + self.copies[place])
        self.made_by[place][kind] += size

    @property
    def moment(self) -> Moment:
        """Counts up to now."""
        return Moment(self.operations, self.storages, self.flops, self.live.copy())

    def repeat(self, place: Any, flops: int) -> None:
        """Count the bytes of a place once more, as if they had been there before `high`."""
        self.copies[place] += 1
        self.flops += flops
        self.live.update(self.made_by[place])
        self.high.update(self.made_by[place])
        self._note_peak(self.high)


def peak_bytes(call: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Return the peak of the bytes during a call, weights included: on a GPU as PyTorch's allocator
    reports it, on a CPU as `ResourceMeter` counts it.
    """
    weights = list(weights)
    storages = [weight.untyped_storage() for weight in weights]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if weights[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return held + torch.cuda.max_memory_allocated() - before
    with ResourceMeter(weights) as meter:
        call()
    return held + meter.peak.total()


def _flash_flops(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    return 4 * math.prod(query.shape) * key.shape[-2]


def _flash_backward_flops(grad: Tensor, query: Tensor, key: Tensor, *a: Any, **kwargs: Any) -> int:
    return 10 * math.prod(query.shape) * key.shape[-2]  # recomputed scores, and four gradients


#: FLOP formulas of torch, and those that it lacks: its flash attention on a CPU.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward_flops,
}
