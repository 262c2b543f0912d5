"""What every routing loss is, and means over all processes."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dpn.common import distributed
from dpn.routers.base import Router
from dpn.tokens import Trace

Reduction = Literal["global", "reference"]


class RoutingLoss(nn.Module):
    """A scalar from a trace, added to the language loss.

    A constructor's annotated arguments are keys of the loss YAML; `router` is given by the model.

    Args:
        reduction: `global`: means are over the samples of all processes; `reference`: over this
            process's own.
        router: whose decisions are judged.
    """

    #: Whether it steers towards `router.keep`.
    needs_keep: ClassVar[bool] = False

    def __init__(self, reduction: Reduction = "global", *, router: Router):
        super().__init__()
        self.reduction = reduction
        # In a tuple: the router's parameters are the model's, not this loss's.
        self._router = (router,)

    @property
    def router(self) -> Router:
        """Whose decisions are judged."""
        return self._router[0]

    def probe(self, seed: int, step: int) -> Router | None:
        """A router for another pass over the batch, without gradient, if the loss needs one.

        `forward` finds its record in `trace.probe`. It follows from the run's seed and the
        optimizer step alone, so that all processes and micro-batches take the same.
        """
        return None

    def forward(self, trace: Trace) -> Tensor:
        """The weighted loss; 0 if nothing was decided anywhere."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `[S]`, over all processes unless `reduction=reference`; 0 without any value."""
        sums = self.total(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
        return sums[0] / sums[1].detach().clamp(min=1)

    def total(self, values: Tensor) -> Tensor:
        """`values` summed over all processes unless `reduction=reference`.

        Every process has the same loss of the same sum, and engines average gradients: N processes
        equal one.
        """
        return distributed.total(values) if self.reduction == "global" else values
