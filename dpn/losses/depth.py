"""A loss that trains gates to predict which rows were selected, so that a threshold on their output
selects the same rows at inference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.ranges import NonNegative
from dpn.losses.base import Reduction, RoutingLoss
from dpn.routers.base import Router
from dpn.tokens import Trace


class DepthLoss(RoutingLoss):
    """weight * sum over layers of the mean cross entropy of the gate's logits against the selection
    of visual rows.

    The auxiliary loss of gamma-MoD (arXiv 2410.13859; `llava_llama_mod.py` of Yaxin9Luo/Gamma-MOD).
    There the mean is over text rows, too; here it is over visual rows only.

    Args:
        weight: Factor of the loss; gamma-MoD uses 0.01.
        reduction: Samples that means are taken over, see `RoutingLoss`.
    """

    def __init__(
        self, weight: NonNegative = 0.01, reduction: Reduction = "global", *, router: Router
    ):
        super().__init__(reduction, router=router)
        self.weight = weight

    def forward(self, trace: Trace) -> Tensor:
        means = [
            self.mean(F.cross_entropy(decision.logits, decision.chosen, reduction="none"))
            for decision in trace.row_decisions
        ]
        return self.weight * torch.stack(means).sum() if means else torch.zeros(())
