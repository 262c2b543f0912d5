"""A loss that steers the expected share of visual MACs to `router.keep`."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.common.ranges import NonNegative
from dpn.losses.base import Reduction, RoutingLoss
from dpn.routers import Grids, PoolingRouter, count_rows
from dpn.routers.base import Router
from dpn.tokens import Decision, Trace


class BudgetLoss(RoutingLoss):
    """weight * (expected share of visual MACs - keep)^2, with a gradient for every expert of every
    gate.

    The expectation is over all routes that a sample could take, with the probabilities that its
    gates gave on the route that it took.

    Args:
        weight: Factor of the loss.
        reduction: Samples that means are taken over, see `RoutingLoss`.
    """

    needs_keep: ClassVar[bool] = True

    def __init__(
        self, weight: NonNegative = 1.0, reduction: Reduction = "global", *, router: Router
    ):
        super().__init__(reduction, router=router)
        if router.keep is None or not isinstance(router, PoolingRouter):
            raise SettingError(
                "A loss with a budget needs a pooling router with router.keep, e.g. router=dpe"
                " router.keep=0.5."
            )
        self.weight, self.keep = weight, router.keep

    def forward(self, trace: Trace) -> Tensor:
        if not trace.decisions:
            return torch.zeros(())
        shares = self.expected_shares(trace)
        return self.weight * (self.mean(shares) - self.keep) ** 2

    def expected_shares(self, trace: Trace) -> Tensor:
        """Return the expected share of visual MACs of every sample with an image, `[S]`."""
        router = self.router
        assert isinstance(router, PoolingRouter)
        by_layer = {d.layer: d for d in trace.decisions}
        means = self._mean_probs(trace.decisions)
        groups: dict[tuple[Grids, int], list[int]] = {}
        for sample, grids in enumerate(trace.grids):
            if count_rows(grids):
                groups.setdefault((grids, trace.base_rows[sample]), []).append(sample)
        shares = []
        for (grids, base), samples in groups.items():
            probs = [
                _probs_at_gate(by_layer[layer], samples, means[layer])
                for layer in router.plan.layers
            ]
            macs = router.plan.expected_macs(probs, grids, router.text, router.where)
            full = router.text.num_layers * router.text.layer_macs(base)
            shares.append(torch.as_tensor(macs / full).expand(len(samples)))
        # Without images the result is empty but stays connected to the gates: all processes must
        # take part in the backward pass.
        return torch.cat(shares) if shares else trace.decisions[0].probs.sum(1)[:0]

    def _mean_probs(self, decisions: Sequence[Decision]) -> dict[int, Tensor]:
        """Return the mean probabilities `[E]` of each gate; uniform at a gate that no sample
        reached.
        """
        sums = [F.pad(d.probs.detach().sum(0), (0, 1), value=len(d.samples)) for d in decisions]
        totals = self.total(torch.cat(sums)).split([len(s) for s in sums])
        return {
            d.layer: torch.where(total[-1] > 0, total[:-1] / total[-1], 1 / (len(total) - 1))
            for d, total in zip(decisions, totals, strict=True)
        }


def _probs_at_gate(decision: Decision, samples: Sequence[int], mean: Tensor) -> Tensor:
    """Return the probabilities of samples at a gate, `[E, S]`.

    A sample that did not reach this gate on the route that it took gets the mean over the samples
    that did. It counts only for other routes, which the sample could have taken.
    """
    place = {b: i for i, b in enumerate(decision.samples)}
    if len(place) == len(samples) and all(b in place for b in samples):
        return decision.probs[[place[b] for b in samples]].T
    return torch.stack([decision.probs[place[b]] if b in place else mean for b in samples], dim=1)
