"""Base class of routers that keep a fixed share of the visual rows from certain depths on.

A depth is the number of layers that ran before: at depth 2 rows are dropped after layer 1 and
before layer 2. A share is relative to the rows with which an image entered the decoder.
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
    """Keeps, at each depth of its schedule, the visual rows of every image with the highest scores.

    Each image of a sample is treated by itself, and its tiles or frames together. Rows keep their
    order. Among equal scores the first rows are kept, e.g. for an image that comes after the text
    whose attention is the score.

    Args:
        where: Layer whose attention `scores` can read at a depth: the layer before it (`post`) or
            the layer after it (`pre`).
        positions: `renumber` or `keep`, see `dpn.tokens.packed.PackedTokens`.
        strength: Parameter that the schedule depends on, see `StrengthRouter`.
        bounds: Smallest and largest strength.
        keep: Target share of visual MACs; if given, it determines the strength.
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
        """Return the share of an image's rows that is kept at each depth."""
        raise TypeError(f"{type(self).__name__} does not implement schedule")

    def left(self, share: float, entered: int, now: int) -> int:
        """Return the number of rows of an image, or of a part of it, that are kept at a depth.

        Args:
            share: Share of the entered rows, from the schedule.
            entered: Number of rows with which it entered the decoder.
            now: Number of rows before the depth.
        """
        return min(now, int(entered * share))

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Return the scores `[rows]` of each span; rows with the highest scores are kept."""
        raise TypeError(f"{type(self).__name__} does not implement scores")

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        # One host synchronisation, in `highest`.
        depth = layer + (self.where == "post")
        if depth not in self.shares:
            return tokens
        scores = self.scores(tokens, context)
        left = self.reduce(tokens, scores, self.shares[depth])
        record(layer, tokens, left, context)
        return left

    def reduce(self, tokens: PackedTokens, scores: Sequence[Tensor], share: float) -> PackedTokens:
        """Keep the rows of each image with the highest scores."""
        counts = []
        for places in tokens.images:
            spans = [tokens.spans[place] for place in places]
            entered, now = sum(s.entered for s in spans), sum(s.rows for s in spans)
            counts.append(self.left(share, entered, now))
        return tokens.keep(highest(scores, counts, tokens.images))

    def rows(self, strength: float) -> list[int]:
        """Return the number of visual rows that enter each layer, for an image of native size."""
        shares, parts = self.schedule(strength), self.parts(strength)
        rows, now = [], parts
        for depth in range(self.text.num_layers):
            if depth in shares:
                share = shares[depth]
                now = [self.left(share, *part) for part in zip(parts, now, strict=True)]
            rows.append(sum(now))
        return rows

    def parts(self, strength: float) -> list[int]:
        """Return the number of rows of each part of an image of native size that is treated by
        itself: the whole image.
        """
        return [self.entering]

    def share(self, strength: float) -> float:
        full = self.text.full_macs(self.entering)
        return self.text.visual_macs(self.rows(strength)) / full

    def bound(self, most: bool) -> Router:
        return _FirstRows(self)

    def check(self) -> list[str]:
        problems = []
        depths, last = list(self.shares), self.text.num_layers
        if depths != sorted(set(depths)) or not all(0 <= d <= last for d in depths):
            problems.append(
                f"The router drops rows before layers {depths}; these must be ascending, from 0 to"
                f" {last} in this decoder (the last means never)."
            )
        return problems + super().check()


class _FirstRows(Router):
    """Keeps the first rows of each image, as many as another router keeps.

    Args:
        router: Router whose schedule it follows.
    """

    where = "pre"

    def __init__(self, router: DroppingRouter):
        super().__init__(**router.sizes)
        self.positions, self.left = router.positions, router.rows(router.strength)

    def between(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> PackedTokens:
        most = self.left[layer]
        if all(span.rows <= most for span in tokens.spans):
            return tokens
        return tokens.keep([np.arange(min(span.rows, most)) for span in tokens.spans])


def highest(
    scores: Sequence[Tensor],
    counts: Sequence[int],
    groups: Sequence[Sequence[int]] | None = None,
) -> list[np.ndarray]:
    """Return the ascending places, within each span, of the highest scores of each group of spans;
    of equal scores the first.

    Args:
        scores: Scores `[rows]` of each span.
        counts: Number of places for each group.
        groups: Consecutive spans that compete with each other; default: each span by itself.
    """
    groups = groups or [(span,) for span in range(len(scores))]
    best = []
    for spans, count in zip(groups, counts, strict=True):
        score = torch.cat([scores[span] for span in spans])
        best.append(score.argsort(descending=True, stable=True)[:count].sort().values)
    places: list[np.ndarray] = []
    for spans, kept in zip(groups, to_host(best), strict=True):
        ends = np.cumsum([len(scores[span]) for span in spans])
        parts = np.split(kept, np.searchsorted(kept, ends[:-1]))
        places += [part - first for part, first in zip(parts, [0, *ends[:-1]], strict=True)]
    return places


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute `a @ b` in fp32 even under autocast: small differences decide how rows are ranked."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def to_host(parts: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy the integers of each part to the host, with one synchronisation."""
    if not parts:
        return []
    return np.split(torch.cat(list(parts)).cpu().numpy(), np.cumsum([len(p) for p in parts])[:-1])


def last_instruction_rows(tokens: PackedTokens, context: RoutingContext) -> list[list[int]]:
    """Return, per sample, a list with the row of its last instruction token."""
    return [
        [tokens.row(sample, max(end - 1, begin))]
        for sample, (begin, end) in enumerate(context.instruction)
    ]


def mean_attention(
    tokens: PackedTokens, context: RoutingContext, rows: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return the attention `[rows]` that each span gets, mean over heads and the given rows.

    Args:
        tokens: The pack.
        context: Context of the hook that calls this.
        rows: Rows of each sample whose attention is read.
    """
    of_heads = context.attention_scores(tokens, rows, lambda probs: probs.mean(0))  # [H, n_b] each
    return of_spans(tokens, [mean.mean(0) for mean in of_heads])


def of_spans(tokens: PackedTokens, values: Sequence[Tensor]) -> list[Tensor]:
    """Select the values of each span's rows from the values of all rows of each sample."""
    return [
        values[span.sample].narrow(0, start - tokens.offsets[span.sample], span.rows)
        for span, start in zip(tokens.spans, tokens.starts, strict=True)
    ]


def record(layer: int, before: PackedTokens, after: PackedTokens, context: RoutingContext) -> None:
    """Add the decision of a method without experts to the trace: one option, with probability 1."""
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
