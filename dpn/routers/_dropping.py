"""What the methods share that let fewer visual rows go on, a fixed share of them, at some depths.

A depth is the number of layers that ran before: at depth 2 rows are dropped after layer 1, before
layer 2. Shares are of the rows with which an image entered the decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from dpn.routers._strength import StrengthRouter
from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import Decision, PackedTokens, Positions


class DroppingRouter(StrengthRouter):
    """At each depth of its schedule keeps the visual rows of every image that score highest.

    Several images of a sample are treated one by one. Rows keep their order. Equal scores, as of an
    image that comes only after the rows that ask, go to the first rows.

    Args:
        where: which layer's attention the hook sees at a depth: that of the layer before (`post`),
            or of the one after (`pre`).
        positions: see `dpn.tokens.packed.PackedTokens`.
        strength: which the schedule follows from, see `StrengthRouter`.
        bounds: see `StrengthRouter`.
        keep: see `StrengthRouter`.
    """

    def __init__(
        self,
        where: Where,
        positions: Positions,
        strength: float,
        bounds: tuple[float, float],
        keep: float | None,
        **sizes: Unpack[RouterSizes],
    ):
        super().__init__(strength, bounds, keep, **sizes)
        self.where, self.positions = where, positions
        self.shares = self.schedule(self.strength)

    def schedule(self, strength: float) -> Mapping[int, float]:
        """The share of an image's rows that goes on from each depth."""
        raise TypeError(f"{type(self).__name__} does not say what it drops")

    def left(self, share: float, entered: int, now: int) -> int:
        """How many rows of an image go on where `share` of those that entered may.

        Args:
            share: of the schedule.
            entered: rows of the image that entered the decoder.
            now: rows that are there.
        """
        return min(now, int(entered * share))

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """`[rows]` of each image: the higher, the rather a row goes on."""
        raise TypeError(f"{type(self).__name__} does not say how it ranks rows")

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        """See `Router.between`; one host synchronisation."""
        depth = layer + (self.where == "post")
        if depth not in self.shares:
            return tokens
        scores = self.scores(tokens, context)
        left = self.reduce(tokens, scores, self.shares[depth])
        record(layer, tokens, left, context)
        return left

    def reduce(self, tokens: PackedTokens, scores: Sequence[Tensor], share: float) -> PackedTokens:
        """Let the highest scored rows of each image go on."""
        counts = [self.left(share, span.entered, span.rows) for span in tokens.spans]
        return tokens.keep(highest(scores, counts))

    def rows(self, strength: float) -> list[int]:
        """Visual rows that enter each layer, of an image of native size."""
        shares, entered = self.schedule(strength), self.grid[0] * self.grid[1]
        rows, now = [], entered
        for depth in range(self.text.num_layers):
            if depth in shares:
                now = self.left(shares[depth], entered, now)
            rows.append(now)
        return rows

    def share(self, strength: float) -> float:
        """Share of visual MACs of an image of native size."""
        full = self.text.full_macs(self.grid[0] * self.grid[1])
        return self.text.visual_macs(self.rows(strength)) / full

    def bound(self, most: bool) -> Router:
        """As many rows as this one leaves, the first ones: without data none is better."""
        return _FirstRows(self)

    def check(self) -> list[str]:
        """Depths, strength and keep that can not be."""
        problems = []
        depths, last = list(self.shares), self.text.num_layers
        if depths != sorted(set(depths)) or not all(0 <= d <= last for d in depths):
            problems.append(
                f"The router drops rows before layers {depths}; these must be ascending, from 0 to"
                f" {last} in this decoder (the last means never)."
            )
        return problems + super().check()


class _FirstRows(Router):
    """Leaves the first rows of each image before every layer.

    Args:
        router: whose schedule it follows.
    """

    where = "pre"

    def __init__(self, router: DroppingRouter):
        super().__init__(**router.sizes)
        self.positions, self.left = router.positions, router.rows(router.strength)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        return tokens.keep([np.arange(min(s.rows, self.left[layer])) for s in tokens.spans])


def highest(scores: Sequence[Tensor], counts: Sequence[int]) -> list[np.ndarray]:
    """Ascending places of the so many highest scores of each image; the first of equal ones."""
    places = [
        score.argsort(descending=True, stable=True)[:count].sort().values
        for score, count in zip(scores, counts, strict=True)
    ]
    return to_host(places)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in fp32, whatever autocast says: rows are ranked by small differences."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def to_host(parts: Sequence[Tensor]) -> list[np.ndarray]:
    """Integers of each image, in one synchronisation."""
    if not parts:
        return []
    return np.split(torch.cat(list(parts)).cpu().numpy(), np.cumsum([len(p) for p in parts])[:-1])


def last_instruction_rows(tokens: PackedTokens, context: RoutingContext) -> list[list[int]]:
    """Per sample the row of its last instruction token, which every method here may ask."""
    return [
        [tokens.row(sample, max(end - 1, begin))]
        for sample, (begin, end) in enumerate(context.instruction)
    ]


def mean_attention(
    tokens: PackedTokens, context: RoutingContext, rows: Sequence[Sequence[int]]
) -> list[Tensor]:
    """`[rows]` of each image: attention from some rows of its sample, mean over heads and them."""
    mean = [p.mean((0, 1)) for p in context.attention_scores(tokens, rows)]  # [n_b] per sample
    return of_images(tokens, mean)


def of_images(tokens: PackedTokens, values: Sequence[Tensor]) -> list[Tensor]:
    """Cuts the values of all rows of each sample down to the rows of each image."""
    return [
        values[span.sample].narrow(0, start - tokens.offsets[span.sample], span.rows)
        for span, start in zip(tokens.spans, tokens.starts, strict=True)
    ]


def record(layer: int, before: PackedTokens, after: PackedTokens, context: RoutingContext) -> None:
    """Write down what a method without experts did: one option, taken with probability 1."""
    samples = tuple(b for b, rows in enumerate(before.visual_rows) if rows)
    context.trace.decisions.append(
        Decision(
            layer,
            samples,
            tuple(tuple(s.grid for s in before.spans if s.sample == b) for b in samples),
            torch.zeros(len(samples), dtype=torch.long),
            torch.ones(len(samples), 1),
            tuple(after.visual_rows[b] for b in samples),
        )
    )
