"""Optimizers that PyTorch does not provide."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from dpn.common.ranges import BelowOne, NonNegative


class MuonAdamW(Optimizer):
    """Muon for the matrices inside layers, AdamW for everything else.

    Muon (Jordan et al., 2024) makes every update of a matrix orthogonal, so rare directions get as
    large a step as frequent ones. That is what lets a small model learn several kinds of questions
    at once: with AdamW the kind with most tokens is learned first and the others stay at chance.

    Args:
        params: Parameter groups; those with `hidden: True` hold the matrices for Muon.
        lr: Learning rate of Muon.
        other_lr: Learning rate of AdamW; a group's own `lr` takes precedence.
        momentum: Momentum of Muon.
        betas: Betas of AdamW.
        weight_decay: Weight decay of both; a group's own takes precedence.
    """

    #: Whether an engine that splits single matrices over processes cannot be used.
    needs_whole_matrices = True

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: NonNegative = 0.02,
        other_lr: NonNegative = 1e-3,
        momentum: BelowOne = 0.95,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.95),
        weight_decay: NonNegative = 0.01,
    ):
        decay = {"weight_decay": weight_decay}
        groups = []
        for group in params:
            hidden = bool(group.get("hidden"))
            values = {"lr": lr if hidden else other_lr, **decay, **group}
            # Each optimizer fills in its own defaults.
            maker = Muon if hidden else AdamW
            own: dict[str, Any] = {"momentum": momentum} if hidden else {"betas": tuple(betas)}
            groups += maker([values], **own).param_groups
        super().__init__(groups, {})
        tensors = [
            [p for g in groups if bool(g.get("hidden")) == h for p in g["params"]]
            for h in (True, False)
        ]
        self._muon = Muon(tensors[0]) if tensors[0] else None
        self._adamw = AdamW(tensors[1]) if tensors[1] else None

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Step both optimizers."""
        loss = closure() if closure is not None else None
        for optimizer, hidden in ((self._muon, True), (self._adamw, False)):
            if optimizer is not None:
                # Groups and state belong to this optimizer, which schedulers and checkpoints see.
                optimizer.param_groups = [
                    g for g in self.param_groups if bool(g.get("hidden")) == hidden
                ]
                optimizer.state = self.state
                optimizer.step()
        return loss
