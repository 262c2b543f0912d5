"""Random pooling: the control for other routers at the same share."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from dpn.common.ranges import AtLeast0
from dpn.cost import solve_for_keep
from dpn.routers._pooling import GateChoice, PoolingRouter
from dpn.routers._pooling_plan import PAPER_KERNELS
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions


class RandomRouter(PoolingRouter):
    """Pools with a random kernel for each sample, in training and evaluation.

    This is DPN's `pooling_type: random`. The draw depends on seed, step and sample, so evaluations
    are reproducible.

    Args:
        layers: 0-based indices of the layers that pool; default: those that end the first, second
            and third quarter of the decoder.
        kernels: Kernels [h, w] to draw from, one list for all layers or one list per layer.
        reduce: `max` or `avg`.
        where: Whether rows are pooled after the layer (`post`) or before it (`pre`).
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        min_rows: Fewest rows that a kernel may leave of a sample; `reference`: no limit, but
            samples below 16 rows are never pooled, as released. Converted DPN models have
            `reference`.
        keep: Expected share of visual MACs; null: all kernels are equally likely.
    """

    meets_keep = "roughly"
    reference_rows = 1

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        kernels: Sequence[Any] = PAPER_KERNELS,
        reduce: Literal["max", "avg"] = "max",
        where: Literal["pre", "post"] = "post",
        positions: Positions = "renumber",
        min_rows: AtLeast0 | Literal["reference"] = 18,
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(layers, kernels, reduce, where, positions, min_rows, keep, **sizes)
        tilt = 0.0 if keep is None else solve_for_keep(keep, self._share, -100.0, 100.0)
        self.chances = self._tilted(tilt)

    def choose(
        self,
        gate: int,
        tokens: PackedTokens,
        samples: Sequence[int],
        allowed: Tensor,
        context: RoutingContext,
    ) -> GateChoice:
        probs = torch.tensor(self.chances[gate]).expand(len(samples), -1)
        return GateChoice(
            draw(probs, allowed, context.uniform(self.plan.layers[gate], samples)), probs
        )

    def _tilted(self, tilt: float) -> list[list[float]]:
        """Return probabilities proportional to exp(tilt / kernel area).

        They are equal at a tilt of 0; a larger tilt favours small kernels.
        """
        every = []
        for kernels in self.plan.kernels:
            logits = [tilt / (h * w) for h, w in kernels]
            powers = [math.exp(x - max(logits)) for x in logits]
            every.append([p / sum(powers) for p in powers])
        return every

    def _share(self, tilt: float) -> float:
        """Return the expected share of visual MACs, which grows with the tilt."""
        grids = tuple(block.grid for block in self.blocks)
        macs = self.plan.expected_macs(self._tilted(tilt), grids, self.text, self.where, self.tails)
        return macs / self.text.full_macs(self.entering)


def draw(probs: Tensor, allowed: Tensor, uniform: Tensor) -> Tensor:
    """Sample an allowed expert for each sample by inverting the cumulative probability.

    Args:
        probs: Probabilities `[S, E]`.
        allowed: Experts that may be chosen, bool `[S, E]`.
        uniform: Random numbers in [0, 1), `[S]`.

    Returns:
        Experts, `[S]`.
    """
    cumulative = (probs.double() * allowed).cumsum(1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    index = (cumulative <= threshold).sum(1)
    last = allowed.shape[1] - 1 - allowed.flip(1).long().argmax(1)  # against rounding at the end
    return torch.minimum(index, last)
