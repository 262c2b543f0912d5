"""A loss that trains gates to predict after which layer an answer needs no visual rows."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.distributed import connect
from dpn.common.errors import SettingError
from dpn.common.ranges import NonNegative, Share
from dpn.common.seeded import uniform
from dpn.losses.base import Reduction, RoutingLoss
from dpn.routers.base import Router
from dpn.routers.vtw import VTWRouter
from dpn.tokens import Trace


class ExitLoss(RoutingLoss):
    """Cross entropy of one gate of `dyvte` against whether an exit at its layer is correct.

    As in `modeling_llama.py` of DoubtedSteam/DyVTE (arXiv 2411.19628), each step draws one layer
    uniformly and runs the batch a second time, without visual rows from that layer on. An exit is
    correct for a sample if more than `agreement` of the most probable tokens at its supervised
    places stay the same and its language loss is below `margin` times the loss with all rows.
    Neither pass needs a gradient. The other gates get a gradient of zero, so that all engines
    behave alike; the released code leaves them out of the step.

    Args:
        agreement: Share of tokens that must stay the same.
        margin: Largest factor by which the language loss may grow.
        reduction: Samples that means are taken over, see `RoutingLoss`.
    """

    def __init__(
        self,
        agreement: Share = 0.99,
        margin: NonNegative = 1.03,
        reduction: Reduction = "global",
        *,
        router: Router,
    ):
        super().__init__(reduction, router=router)
        self.agreement, self.margin = agreement, margin

    def probe(self, seed: int, step: int) -> Router:
        """Return a router that drops all visual rows after the layer drawn for this step."""
        router = self.router
        draw = float(uniform(np.zeros(1, dtype=np.uint64), seed, step)[0])
        layer = int(draw * (router.text.num_layers - 1))
        return VTWRouter(layer + 1, router.positions, **router.sizes)

    def forward(self, trace: Trace) -> Tensor:
        if trace.probe is None:
            return torch.zeros(())
        # The probe acts before a layer, the gates act after one.
        layer = trace.probe.decisions[0].layer - 1
        decision = next(d for d in trace.decisions if d.layer == layer)
        labels = self.labels(trace)
        places = [place for place, b in enumerate(decision.samples) if b in labels]
        device = decision.probs.device
        chances = decision.probs[torch.tensor(places, dtype=torch.long).to(device)]
        right = [labels[decision.samples[place]] for place in places]
        target = torch.stack(right) if right else torch.zeros(0, dtype=torch.long, device=device)
        logs = chances.clamp(min=torch.finfo(chances.dtype).tiny).log()
        loss = self.mean(F.nll_loss(logs, target, reduction="none"))
        return connect(loss, [d.probs for d in trace.decisions])

    def labels(self, trace: Trace) -> dict[int, Tensor]:
        """Return 1 for each sample whose exit is correct, else 0; only samples with supervised
        tokens.

        Raises:
            ValueError: If the passes had no labels.
        """
        probe = trace.probe
        if probe is None or probe.predicted is None or trace.predicted is None:
            raise SettingError(
                "loss=exit compares the answers of two passes; pass labels to both, and set"
                " trace.probe to the trace of the second one."
            )
        assert probe.sample_loss is not None
        assert trace.sample_loss is not None
        below = probe.sample_loss < self.margin * trace.sample_loss
        found = {}
        for sample, (one, other) in enumerate(zip(probe.predicted, trace.predicted, strict=True)):
            if len(one):
                same = (one == other).float().mean() > self.agreement
                found[sample] = (same & below[sample]).long()
        return found
