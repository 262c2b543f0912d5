"""Dynamic visual-token exit (arXiv 2411.19628): once a gate sees that the text has taken in the
image, its rows leave.
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
    """After each layer a gate decides whether all visual rows of the sample leave, for good.

    As in `modeling_llama.py` of DoubtedSteam/DyVTE: a gate is Linear(2D, 2048), GELU,
    Linear(2048, 2) without biases and reads the mean of the text rows between the image and the
    last instruction token, beside that token's row; a sample leaves after the first layer at which
    the second logit is the larger one. The 0.1 of dropout that the release makes is never used
    there, nor here. Gates learn from `loss=exit`, in a finished model that stays as it is:
    `stage=gates`. In training no row ever leaves: the loss tries one layer in a further pass.

    Answers are never read, in later turns neither. Left open there: of several images of a sample,
    text is read from behind the first one. The gate after the last layer is left out, which could
    save nothing. Gates that were never trained leave at random, as there.

    Args:
        hidden: width of the gates.
        positions: `keep`, as released, or `renumber`.
        keep: share of visual MACs to meet in evaluation, by a price on staying found after
            training.
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
        # Added to the logit of leaving in evaluation; see `dpn.training.calibration`.
        self.register_buffer("price", torch.empty((), dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The price starts as zero."""
        nn.init.zeros_(self.price)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """See `Router.between`; one host synchronisation, none in training."""
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
        """Mean text row and last instruction row, fp32 `[S, 2D]`, detached.

        Where no text stands between the image and the last token, its row is both.
        """
        text, last = [], []
        for sample in samples:
            begin, end = context.instruction[sample]
            images = [s.column for s in tokens.spans if s.sample == sample and s.column < end]
            first, final = min(images, default=begin - 1) + 1, max(begin, end - 1)
            between = [column for column in range(first, final) if column not in images]
            text.append(between or [final])
            last.append([final])
        parts = [mean_rows(tokens, samples, columns) for columns in (text, last)]
        return torch.cat(parts, 1).detach()

    def check(self) -> list[str]:
        """A width or a keep that can not be."""
        problems = check_keep(self)
        if self.hidden < 1:
            problems.append(f"router.hidden={self.hidden} must be at least 1.")
        return problems

    def reach(self) -> tuple[float, float]:
        """The shares if every sample left after the first layer, or never."""
        entering = self.grid[0] * self.grid[1]
        layer, full = self.text.layer_macs(entering), self.text.full_macs(entering)
        return layer / full, self.text.num_layers * layer / full
