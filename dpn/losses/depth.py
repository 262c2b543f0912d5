"""A gate that learns what it picked, so that a threshold finds the same rows later."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.losses.base import Reduction, RoutingLoss
from dpn.routers.base import Router
from dpn.tokens import Trace


class DepthLoss(RoutingLoss):
    """weight * sum over layers of the mean cross entropy of visual rows against being picked.

    The auxiliary loss of gamma-MoD (arXiv 2410.13859; `llava_llama_mod.py` of Yaxin9Luo/Gamma-MOD),
    where text has a part in the mean, too.

    Args:
        weight: of the loss; 0.01.
        reduction: see `RoutingLoss`.
    """

    def __init__(self, weight: float = 0.01, reduction: Reduction = "global", *, router: Router):
        super().__init__(reduction, router=router)
        self.weight = weight

    def forward(self, trace: Trace) -> Tensor:
        """See `RoutingLoss.forward`."""
        means = [
            self.mean(F.cross_entropy(decision.logits, decision.chosen, reduction="none"))
            for decision in trace.row_decisions
        ]
        return self.weight * torch.stack(means).sum() if means else torch.zeros(())
