"""DPN's routing loss (arXiv 2503.20322; the released `hack/loss.py`)."""

from typing import Literal

import torch
from torch import Tensor

from dpn.common.ranges import NonNegative
from dpn.losses.base import Reduction, RoutingLoss
from dpn.routers.base import Router
from dpn.tokens import Trace


class HingeLoss(RoutingLoss):
    """weight * mean over DPE layers of max(0, target - mean over samples of (s_a * p_a)), s = 0, 1,
    2, ...

    a is the most probable expert, not the sampled one, and s_a its index among the kernels. If the
    identity is the most probable expert, it gets no gradient (s = 0). If the second expert is, its
    probability is raised, although a `target` of 1.5 is out of its reach. So the loss reinforces
    the expert that already leads; this follows the paper's recipe.

    Args:
        weight: Factor of the loss.
        target: Lower bound of the mean.
        hinge_mean: `per_layer`: one mean per layer; `reference`: one mean over all layers together,
            like the aliased list in the released code.
        reduction: Samples that means are taken over, see `RoutingLoss`.
    """

    def __init__(
        self,
        weight: NonNegative = 0.001,
        target: NonNegative = 1.5,
        hinge_mean: Literal["per_layer", "reference"] = "per_layer",
        reduction: Reduction = "global",
        *,
        router: Router,
    ):
        super().__init__(reduction, router=router)
        self.weight, self.target, self.hinge_mean = weight, target, hinge_mean

    def forward(self, trace: Trace) -> Tensor:
        if not trace.decisions:
            return torch.zeros(())
        layers = []
        for decision in trace.decisions:
            chance, expert = decision.probs.max(-1)
            layers.append(expert * chance)
        if self.hinge_mean == "reference":
            layers = [torch.cat(layers)]
        hinges = [(self.target - self.mean(values)).clamp(min=0) for values in layers]
        return self.weight * torch.stack(hinges).mean()
