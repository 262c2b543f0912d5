"""Dynamic visual-token exit, DyVTE (arXiv 2411.19628): a gate decides after which layer all visual
rows are dropped.
"""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from dpn.routers._gates import ExitGate, mean_rows
from dpn.routers.base import Router, RouterSizes, RoutingContext, check_keep
from dpn.tokens import Decision, PackedTokens, Positions

NAMES = ("stay", "leave")


class DyVTERouter(Router):
    """After each layer a gate decides whether all visual rows of a sample are dropped.

    As in `modeling_llama.py` of DoubtedSteam/DyVTE: a gate is Linear(2D, 2048), GELU,
    Linear(2048, 2) without biases. It reads two rows: the mean of the text rows between the image
    and the last instruction token, and that token's row. A sample's visual rows are dropped after
    the first layer at which the second logit is the larger one. The release defines a dropout of
    0.1 but never applies it; here there is none. The gates are trained by `loss=exit` in a finished
    model that does not change: `stage=gates`. In training no rows are dropped; the loss tests one
    layer in another pass.

    Answers are never read, in later turns neither. The release has one image per sample; with
    several images, text after the first one is read. There is no gate after the last layer, where
    dropping rows saves nothing. Untrained gates drop rows at random, as in the release.

    Args:
        hidden: Width of the gates.
        positions: `keep`, as released, or `renumber`.
        keep: Target share of visual MACs in evaluation, met by a price on staying that is found
            after training.
    """

    meets_keep = "roughly"
    own_weights = True
    uncounted_flops = True
    calibrated: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("exit",)
    price: Tensor

    def __init__(
        self,
        hidden: int = 2048,
        positions: Positions = "keep",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(**sizes)
        self.positions, self.keep, self.hidden = positions, keep, hidden
        self.gates = nn.ModuleDict(
            {
                str(layer): ExitGate(2 * self.text.hidden_size, max(1, hidden))
                for layer in range(self.text.num_layers - 1)
            }
        )
        # Added to the logit of dropping in evaluation, see `dpn.training.calibration`.
        self.register_buffer("price", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the price as zero."""
        nn.init.zeros_(self.price)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        # One host synchronisation in evaluation, none in training.
        if str(layer) not in self.gates:
            return tokens
        samples = tuple(b for b, rows in enumerate(tokens.visual_rows) if rows)
        read = self.read_rows(tokens, samples, context)
        logits = self.gates[str(layer)](read)
        if context.training:
            experts = torch.zeros(len(samples), dtype=torch.long)
        else:
            logits = logits + torch.stack([torch.zeros_like(self.price), self.price])
            experts = (logits[:, 1] > logits[:, 0]).long().cpu()
        leaving = {b for b, leaves in zip(samples, experts.tolist(), strict=True) if leaves}
        left = tokens
        if leaving:
            rows = [np.arange(0 if s.sample in leaving else s.rows) for s in tokens.spans]
            left = tokens.keep(rows)
        grids = tuple(tuple(s.grid for s in tokens.spans if s.sample == b) for b in samples)
        kept = tuple(left.visual_rows[b] for b in samples)
        context.trace.decisions.append(
            Decision(layer, samples, grids, experts, logits.softmax(-1), kept, read, NAMES)
        )
        return left

    def read_rows(
        self, tokens: PackedTokens, samples: Sequence[int], context: RoutingContext
    ) -> Tensor:
        """Return mean text row and last instruction row, fp32 `[S, 2D]`, detached.

        Without text between the image and the last token, the token's row is used for both.
        """
        text, last = [], []
        for sample in samples:
            begin, end = context.instruction[sample]
            own = [s for s in tokens.spans if s.sample == sample]
            images = {column for s in own for column in s.columns if column < end}
            first, final = min(images, default=begin - 1) + 1, max(begin, end - 1)
            between = [column for column in range(first, final) if column not in images]
            text.append(between or [final])
            last.append([final])
        parts = [mean_rows(tokens, samples, columns) for columns in (text, last)]
        return torch.cat(parts, 1).detach()

    def check(self) -> list[str]:
        problems = check_keep(self)
        if self.hidden < 1:
            problems.append(f"router.hidden={self.hidden} must be at least 1.")
        return problems

    def reach(self) -> tuple[float, float]:
        # The shares if the rows of every sample are dropped after the first layer, or never.
        layer, full = self.text.layer_macs(self.entering), self.text.full_macs(self.entering)
        return layer / full, self.text.num_layers * layer / full
