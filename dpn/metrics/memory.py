"""Bytes that live and FLOPs that are spent while code runs, on tensors with memory or without."""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
#: What `Watch` calls them.
COPIES = "weights in another precision"


class Watch(TorchDispatchMode):
    """Counts storages while they live, and FLOPs.

    Args:
        weights: are not counted.

    Attributes:
        live: bytes now: activations, and copies of weights in another precision.
        peak: the same when their sum was largest.
        place: what makes storages now; whoever watches sets it.
        made_by: bytes that live now, by the place that made them.
        flops: FMA = 2.
    """

    def __init__(self, weights: Iterable[Tensor] = ()):
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.place: Any = None
        self.made_by: Counter[Any] = Counter()
        self.flops = 0
        self._weights = weakref.WeakSet(w.untyped_storage() for w in weights)
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(self._weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
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
        self._count(kind, self.place, storage.nbytes())
        weakref.finalize(storage, self._count, kind, self.place, -storage.nbytes())
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _count(self, kind: str, place: Any, size: int) -> None:
        self.live[kind] += size
        self.made_by[place] += size


def peak_bytes(call: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes at the highest moment of a call, weights included: on a GPU those that PyTorch takes
    there, on a CPU those of all tensors, see `Watch`.
    """
    weights = list(weights)
    storages = [weight.untyped_storage() for weight in weights]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if weights[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return held + torch.cuda.max_memory_allocated() - before
    with Watch(weights) as watch:
        call()
    return held + watch.peak.total()


def _flash_flops(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> int:
    return 4 * math.prod(query.shape) * key.shape[-2]


def _flash_backward_flops(grad: Tensor, query: Tensor, key: Tensor, *a: Any, **kwargs: Any) -> int:
    return 10 * math.prod(query.shape) * key.shape[-2]  # the scores once more, and four gradients


#: Formulas of torch, and of its flash attention on a CPU, which it has none for.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward_flops,
}
