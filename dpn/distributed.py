"""What keeps the processes of a distributed run on one path."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def total(values: Tensor) -> Tensor:
    """`values` summed over all processes; so is their gradient."""
    return _Sum.apply(values) if several_processes() else values


def connect(hidden: Tensor, used: Iterable[Tensor]) -> Tensor:
    """`hidden` as it is, with a gradient of zero for everything in `used`.

    Processes average gradients parameter by parameter, so all of them have to have one for the same
    parameters, whatever their samples were and whichever way these were routed; and an optimizer
    does not treat a gradient of zero as it treats none, so one process has to have it, too.
    """
    zero = sum((x.flatten()[:0].sum().to(hidden.dtype) for x in used), hidden.new_zeros(()))
    return hidden + zero
