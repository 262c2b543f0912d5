"""Base class of the routing losses, with means over all processes."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dpn.common import distributed
from dpn.routers.base import Router
from dpn.tokens import Trace

Reduction = Literal["global", "reference"]


class RoutingLoss(nn.Module):
    """Base class of routing losses, each a scalar computed from a trace and added to the language
    loss.

    The annotated arguments of a subclass's constructor are the keys of its YAML file; `router` is
    passed in by the caller.

    Args:
        reduction: Samples that means are taken over: those of all processes (`global`) or of this
            process only (`reference`).
        router: Router whose decisions the loss reads.
    """

    #: Whether the loss steers the visual work towards `router.keep`.
    needs_keep: ClassVar[bool] = False
    #: Names of routers that it can train, besides those that list it in `Router.losses`.
    trains: ClassVar[tuple[str, ...]] = ()

    def __init__(self, reduction: Reduction = "global", *, router: Router):
        super().__init__()
        self.reduction = reduction
        # In a tuple: the router's parameters are the model's, not this loss's.
        self._router = (router,)

    @property
    def router(self) -> Router:
        """Router whose decisions the loss reads."""
        return self._router[0]

    def probe(self, seed: int, step: int) -> Router | None:
        """Return a router for an extra pass over the batch without gradient, if the loss needs one.

        `forward` finds the trace of that pass in `trace.probe`. The router must depend on the run's
        seed and the optimizer step alone, so that all processes and micro-batches use the same one.
        """
        return None

    def forward(self, trace: Trace) -> Tensor:
        """Return the weighted loss; 0 if the trace has no decisions."""
        raise TypeError(f"{type(self).__name__} does not implement forward")

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `[S]`, over all processes unless `reduction=reference`; 0 if there are
        no values.
        """
        sums = self.total(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
        return sums[0] / sums[1].detach().clamp(min=1)

    def total(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes unless `reduction=reference`.

        Every process computes the same loss from the same sum and engines average gradients, so N
        processes give the same gradient as one.
        """
        return distributed.total(values) if self.reduction == "global" else values
