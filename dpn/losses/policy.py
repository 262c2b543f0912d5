"""A policy gradient that trains gates by each sample's language loss, within a budget."""

import torch
from torch import Tensor, nn

from dpn.common.errors import SettingError
from dpn.common.ranges import NonNegative
from dpn.losses.base import Reduction
from dpn.losses.budget import BudgetLoss
from dpn.routers import MLPGate, PoolingRouter
from dpn.routers.base import Router
from dpn.tokens import Decision, Trace


class PolicyLoss(BudgetLoss):
    """`BudgetLoss` plus a policy gradient: a choice becomes less probable if the sample's language
    loss was higher than expected, and more probable if it was lower.

    REINFORCE with a learned baseline (Williams, 1992). A value head per gate predicts the expected
    loss from the gate's input; only this loss trains the value heads, and they are not saved with
    the model.

    Args:
        weight: Factor of the budget loss.
        policy_weight: Factor of the policy gradient.
        entropy_weight: Factor of the gates' mean entropy in nats, which is maximised so that gates
            do not settle on an expert before the model has adapted to pooled rows.
        reduction: Samples that means are taken over, see `RoutingLoss`.
    """

    def __init__(
        self,
        weight: NonNegative = 1.0,
        policy_weight: NonNegative = 1.0,
        entropy_weight: NonNegative = 0.003,
        reduction: Reduction = "global",
        *,
        router: Router,
    ):
        super().__init__(weight, reduction, router=router)
        self.policy_weight, self.entropy_weight = policy_weight, entropy_weight
        assert isinstance(router, PoolingRouter)
        layers, width = router.plan.layers, router.text.hidden_size
        self.values = nn.ModuleDict({str(n): MLPGate(width, 1) for n in layers})

    def forward(self, trace: Trace) -> Tensor:
        """Return the weighted loss.

        Raises:
            ValueError: If the gates read no rows, or the pass had no labels.
        """
        loss = super().forward(trace)
        for decision in trace.decisions:
            if decision.read is None or trace.sample_loss is None:
                raise SettingError(
                    "loss=policy needs gates that read rows, and labels; use router=dpe, or"
                    " loss=language."
                )
            loss = loss + self._gate_loss(decision, decision.read, trace.sample_loss)
        return loss

    def _gate_loss(self, decision: Decision, read: Tensor, sample_loss: Tensor) -> Tensor:
        """Return squared error of the value head, policy gradient and entropy at one gate."""
        device = read.device
        actual = sample_loss[torch.tensor(decision.samples, dtype=torch.long).to(device)]
        expected = self.values[str(decision.layer)](read)[:, 0]
        known = actual.isfinite()  # samples without supervised tokens have no loss
        error = torch.where(known, actual - expected, 0.0)
        reward = self.mean(error.detach() * self._drawn_probs(decision).log())
        entropy = self.mean(torch.special.entr(decision.probs).sum(-1))
        return self.mean(error**2) + self.policy_weight * reward - self.entropy_weight * entropy

    def _drawn_probs(self, decision: Decision) -> Tensor:
        """Return each choice's probability among the allowed experts, `[S]`."""
        router = self.router
        assert isinstance(router, PoolingRouter)
        gate = router.plan.layers.index(decision.layer)
        options = [router.plan.options(gate, grids) for grids in decision.grids]
        allowed = torch.tensor([[g is not None for g in o] for o in options], dtype=torch.bool)
        probs = decision.probs
        drawn = probs * allowed.view(probs.shape).to(probs.device, non_blocking=True)
        chosen = drawn.gather(1, decision.experts.to(probs.device)[:, None])[:, 0]
        return chosen / drawn.sum(1)
