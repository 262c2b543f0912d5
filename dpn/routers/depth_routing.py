"""Mixture of depths for visual rows, gamma-MoD (arXiv 2410.13859): some rows pass a layer by."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpn.routers._dropping import dot, highest
from dpn.routers._strength import StrengthRouter
from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens, Positions, RowDecision

log = logging.getLogger(__name__)


class DepthRoutingRouter(StrengthRouter):
    """At its layers a gate picks the visual rows that take part; the others stay what they are.

    As in `llava_llama_mod.py` of Yaxin9Luo/Gamma-MOD: one gate, Linear(D, 2) without bias and the
    same for all layers, gives each row a probability p of taking part. In training the
    ceil(capacity * n) of n rows with the highest p do, in evaluation those with p above a
    threshold. A layer's attention and cache hold the rows that take part alone, numbered without
    gaps; the output of its FFN is multiplied by p. `loss=depth` (weight 0.01) teaches the gate what
    was picked.

    Differences: text always takes part, at full weight, where the release routes the system
    prompt's tokens with the image's, weights all tokens by p, and lets a generated one with p below
    0.5 pass by. The gate reads rows after an RMS norm without weights instead of each layer's own
    norm. With a `keep` the highest p of each image take part in evaluation, too, so that the share
    is met. Of several images each has its own capacity.

    A short training does not bring p below the threshold: then only a `keep`, or a threshold of
    null, saves work in evaluation.

    A row's p depends on what stands before the row, so after an answer on that answer, as the row
    itself does; what stands before the answer never does.

    Args:
        capacity: share of an image's rows that take part in training; 0.5, as released.
        layers: 0-based; default: all but the first 3 of 32, and their like in other decoders, and
            the last, as with `arank_mod`. `tools/search.py` ranks them.
        threshold: of p in evaluation; null: as in training.
        positions: in these layers, `renumber`, as released, or `keep`.
        keep: share of visual MACs to meet instead, by choosing the capacity.
    """

    acts = "within layers"
    own_weights = True
    lossless = False
    uncounted_flops = True
    losses: ClassVar[tuple[str, ...]] = ("depth",)
    search_samples = 50

    def __init__(
        self,
        capacity: float = 0.5,
        layers: Sequence[int] | None = None,
        threshold: float | None = 0.005,
        positions: Positions = "renumber",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        depth = sizes["text"].num_layers
        default = range(max(1, round(depth * 3 / 32)), depth - 1)
        self.layers = tuple(default if layers is None else layers)
        super().__init__(capacity, (0.0, 1.0), keep, **sizes)
        self.positions, self.threshold = positions, threshold
        # No `Gate` of its own: engines that share out weights gather those once in a pass.
        self.gate = nn.Parameter(torch.empty(2, self.text.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gate starts as a Linear does."""
        nn.init.kaiming_uniform_(self.gate, a=math.sqrt(5))

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        """See `Router.within`; one host synchronisation."""
        if layer not in self.layers:
            return None
        read = F.rms_norm(tokens.visual.float(), (self.text.hidden_size,), eps=1e-6)
        logits = dot(read, self.gate.T)  # [Nv, 2] passes by, takes part
        probs = logits.softmax(-1)[:, 1]
        counts = [span.rows for span in tokens.spans]
        rows = self.taken(probs.detach().split(counts), context.training)
        starts = np.cumsum([0, *counts])
        flat = [start + places for start, places in zip(starts, rows, strict=False)]
        index = torch.from_numpy(np.concatenate([starts[:0], *flat])).to(probs.device)
        chosen = torch.zeros_like(probs, dtype=torch.long).index_fill(0, index, 1)
        context.trace.row_decisions.append(RowDecision(layer, logits, chosen))
        return LayerPlan(rows=tuple(rows), scale=probs[index])

    def taken(self, scores: Sequence[Tensor], training: bool) -> list[np.ndarray]:
        """Ascending places of each image's rows that take part, given their probabilities."""
        if training or self.keep is not None or self.threshold is None:
            return highest(scores, [self.left(len(score)) for score in scores])
        if not scores:
            return []
        above = (torch.cat(list(scores)) > self.threshold).cpu().numpy()
        ends = np.cumsum([len(score) for score in scores])[:-1]
        return [np.flatnonzero(part) for part in np.split(above, ends)]

    def left(self, rows: int, capacity: float | None = None) -> int:
        """How many of an image's rows take part."""
        capacity = self.strength if capacity is None else capacity
        return min(rows, math.ceil(rows * capacity - 1e-6))

    def share(self, strength: float) -> float:
        """Share of visual MACs of an image of native size."""
        whole = self.grid[0] * self.grid[1]
        part = self.left(whole, strength)
        rows = [part if n in self.layers else whole for n in range(self.text.num_layers)]
        return self.text.visual_macs(rows) / self.text.full_macs(whole)

    def bound(self, most: bool) -> Router:
        """As many rows take part as in training, the first ones: without data none is better."""
        router = copy.copy(self)
        router.taken = lambda scores, training: [  # type: ignore[method-assign]
            np.arange(self.left(len(score))) for score in scores
        ]
        return router

    def check(self) -> list[str]:
        """Layers, threshold, capacity and keep that can not be."""
        problems, last = super().check(), self.text.num_layers - 1
        if any(not 0 <= layer <= last for layer in self.layers):
            problems.append(
                f"router.layers={list(self.layers)} must lie between 0 and {last} in this decoder."
            )
        if self.threshold is not None and not 0 <= self.threshold < 1:
            problems.append(
                f"router.threshold={self.threshold} is a probability; it must be from 0 to below 1."
            )
        return problems

    @classmethod
    def search(
        cls,
        model: Any,
        batches: Sequence[Mapping[str, Any]],
        tolerance: float | None = None,
    ) -> dict[str, list[int]]:
        """Rank the layers by ARank, the mean rank of their attention maps.

        Args:
            model: see `Router.search`.
            batches: see `Router.search`.
            tolerance: singular values below this share of the largest count as zero; None: what
                rounding leaves, see `torch.linalg.matrix_rank`.

        Returns:
            All layers, the lowest rank first: rows skip the first ones with least loss.
        """
        ranks = mean_ranks(model, batches, tolerance)
        layers = sorted(range(len(ranks)), key=ranks.__getitem__)
        for layer in layers:
            log.info("layer %2d  mean rank %.2f", layer, ranks[layer])
        log.info("From the lowest rank to the highest: give router.layers the first of these.")
        return {"layers": layers}


class _RankOfMaps(Router):
    """Adds up the ranks of each layer's attention maps and changes nothing.

    The paper takes the mean over heads and samples, and leaves open which samples and what counts
    as zero. Without a tolerance a map has nearly as many ranks as rows, since each row sees itself.

    Args:
        like: router of the model.
        tolerance: see `DepthRoutingRouter.search`.
    """

    def __init__(self, like: Router, tolerance: float | None = None):
        super().__init__(**like.sizes)
        self.positions, self.tolerance, self.samples = like.positions, tolerance, 0
        self.ranks = [0.0] * self.text.num_layers

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        """Measure a layer before it runs, one sample at a time to hold few maps."""
        if where == "pre":
            none: list[Sequence[int]] = [()] * len(tokens.lengths)
            for sample, (first, end) in enumerate(pairwise(tokens.offsets)):
                rows = [*none[:sample], range(first, end), *none[sample + 1 :]]
                self.ranks[layer] += self.rank(context.attention_scores(tokens, rows)[sample])
            self.samples += len(tokens.lengths) if layer == 0 else 0
        return tokens

    def rank(self, probs: Tensor) -> float:
        """Mean over heads of the rank of `[n, H, n]` probabilities."""
        ranks = torch.linalg.matrix_rank(probs.transpose(0, 1), rtol=self.tolerance)
        return float(ranks.float().mean())


@torch.inference_mode()
def mean_ranks(
    model: Any, batches: Sequence[Mapping[str, Any]], tolerance: float | None
) -> list[float]:
    """ARank of each layer over all samples of some batches, see `DepthRoutingRouter.search`."""
    ranks = _RankOfMaps(model.router, tolerance)
    for batch in batches:
        model(**batch, logits_to_keep=1, router=ranks)
    return [total / ranks.samples for total in ranks.ranks]
