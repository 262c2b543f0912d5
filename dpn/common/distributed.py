"""Keep several processes in step: groups, shares of the work, sums and gradients."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from dpn.common.errors import DPNError

#: What errors of gloo and of the store, which have no class of their own, say.
_LOST = ("gloo", "connection closed by peer", "connection reset", "broken pipe", "tcpstore")


@contextmanager
def joined_processes(timeout_s: float) -> Iterator[None]:
    """Join the processes that torchrun started, if any, in a group while the block runs.

    Args:
        timeout_s: Seconds that processes wait for each other before `dist` raises an error; one
            may work much longer than another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


class ProcessLost(DPNError, RuntimeError):
    """Another process of a run ended or does not answer."""


def _end_others() -> None:
    """End the processes of this run that this one started; one that is stopped would stay."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "LOCAL_RANK" in child.environ():
                child.kill()


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Turn the errors of torch.distributed about other processes into a sentence.

    Raises:
        ProcessLost: If another process of the group ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        if isinstance(error, DPNError) or not (
            isinstance(error, dist.DistError) or any(word in said for word in _LOST)
        ):
            raise
        _end_others()
        late = "did not answer in time" if "time" in said else "ended"
        raise ProcessLost(
            f"Another process of this run {late}, so this one stops, too; see the output of the"
            " other, then give the same command again: it continues."
        ) from error


def several_processes() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share(items: Sequence[int]) -> list[int]:
    """This process's contiguous part of a list."""
    if not several_processes():
        return list(items)
    size = -(-len(items) // dist.get_world_size())
    return list(items[dist.get_rank() * size :][:size])


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
    """Sum `values` over all processes; the gradient is summed as well."""
    return _Sum.apply(values) if several_processes() else values


def connect(hidden: Tensor, used: Iterable[Tensor]) -> Tensor:
    """Return `hidden` unchanged, with a gradient of zero for everything in `used`.

    Processes average gradients parameter by parameter, so all of them need one for the same
    parameters, whatever their samples and routes are. A single process needs it too, since an
    optimizer treats a gradient of zero differently from none. Engines that shard weights need the
    same modules called on all processes even without gradients.
    """
    zero = sum((x.flatten()[:0].sum().to(hidden.dtype) for x in used), hidden.new_zeros(()))
    return hidden + zero
