"""Mixture of depths for visual rows, gamma-MoD (arXiv 2410.13859): some rows skip a layer."""

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

from dpn.common.ranges import Share
from dpn.routers._dropping import dot, highest
from dpn.routers._strength import StrengthRouter
from dpn.routers.base import Router, RouterSizes, RoutingContext, Where
from dpn.tokens import LayerPlan, PackedTokens, Positions, RowDecision

log = logging.getLogger(__name__)


class DepthRoutingRouter(StrengthRouter):
    """At some layers a gate chooses the visual rows that take part; the others skip the layer.

    As in `llava_llama_mod.py` of Yaxin9Luo/Gamma-MOD: one gate, Linear(D, 2) without bias and the
    same for all layers, gives each row a probability p of taking part. In training the
    ceil(capacity * n) of n rows with the highest p do, in evaluation those with p above a
    threshold. A layer's attention and cache hold the rows that take part alone, numbered without
    gaps; the output of its FFN is multiplied by p. `loss=depth` (weight 0.01) trains the gate to
    predict which rows were chosen.

    Differences to the release: text always takes part, at full weight; the release routes the
    system prompt's tokens with the image's, weights all tokens by p, and lets a generated token
    with p below 0.5 skip the layer. The gate reads rows after an RMS norm without weights instead
    of each layer's own norm. With a `keep`, the rows with the highest p take part in evaluation
    too, so that the share is met. Each image of a sample has its own capacity.

    A short training does not bring p below the threshold. Then only a `keep`, or a threshold of
    null, saves work in evaluation.

    The p of a row depends on the text before the row. An image after an answer therefore depends on
    that answer; rows before the answer never do.

    Args:
        capacity: Share of an image's rows that take part in training; 0.5, as released.
        layers: 0-based indices of the layers that rows may skip; default: all but the first 3 of
            32, scaled to the depth, and the last, as with `arank_mod`. `tools/search.py` ranks
            layers.
        threshold: Smallest p of the rows that take part in evaluation; null: as in training.
        positions: Numbering of rows within these layers: `renumber`, as released, or `keep`.
        keep: Target share of visual MACs, met by choosing the capacity.
    """

    acts = "within layers"
    own_weights = True
    lossless = False
    uncounted_flops = True
    losses: ClassVar[tuple[str, ...]] = ("depth",)
    search_samples = 50

    def __init__(
        self,
        capacity: Share = 0.5,
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
        # Not a `Gate`: engines that shard weights gather those once per pass.
        self.gate = nn.Parameter(torch.empty(2, self.text.hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the gate like a linear layer."""
        nn.init.kaiming_uniform_(self.gate, a=math.sqrt(5))

    def within(self, layer: int, tokens: PackedTokens, context: RoutingContext) -> LayerPlan | None:
        # One host synchronisation, in `taken`.
        if layer not in self.layers:
            return None
        read = F.rms_norm(tokens.visual.float(), (self.text.hidden_size,), eps=1e-6)
        logits = dot(read, self.gate.T)  # [Nv, 2]: skips the layer, takes part
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
        """Return the ascending places of each image's rows that take part.

        Args:
            scores: Probabilities `[rows]` of each image.
            training: Whether the model is in training mode.
        """
        if training or self.keep is not None or self.threshold is None:
            return highest(scores, [self.left(len(score)) for score in scores])
        if not scores:
            return []
        above = (torch.cat(list(scores)) > self.threshold).cpu().numpy()
        ends = np.cumsum([len(score) for score in scores])[:-1]
        return [np.flatnonzero(part) for part in np.split(above, ends)]

    def left(self, rows: int, capacity: float | None = None) -> int:
        """Return the number of an image's rows that take part."""
        capacity = self.strength if capacity is None else capacity
        return min(rows, math.ceil(rows * capacity - 1e-6))

    def share(self, strength: float) -> float:
        whole = self.entering
        part = self.left(whole, strength)
        rows = [part if n in self.layers else whole for n in range(self.text.num_layers)]
        return self.text.visual_macs(rows) / self.text.full_macs(whole)

    def bound(self, most: bool) -> Router:
        # As many rows as in training; which ones makes no difference to the cost.
        router = copy.copy(self)
        router.taken = lambda scores, training: [  # type: ignore[method-assign]
            np.arange(self.left(len(score))) for score in scores
        ]
        return router

    def check(self) -> list[str]:
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
            model: See `Router.search`.
            batches: See `Router.search`.
            tolerance: Share of the largest singular value below which others count as zero;
                None: the default of `torch.linalg.matrix_rank`.

        Returns:
            All layers, the lowest rank first: rows can skip the first ones with the least loss.
        """
        ranks = mean_ranks(model, batches, tolerance)
        layers = sorted(range(len(ranks)), key=ranks.__getitem__)
        for layer in layers:
            log.info("layer %2d  mean rank %.2f", layer, ranks[layer])
        log.info("From the lowest rank to the highest: give router.layers the first of these.")
        return {"layers": layers}


class _RankOfMaps(Router):
    """Adds up the ranks of each layer's attention maps and keeps all rows.

    As in `compute_attention_rank` of Yaxin9Luo/Gamma-MOD, the attention of a row to itself is left
    out, which would give nearly every map its full rank, and the mean is taken over heads and
    samples. The paper does not say which samples.

    Args:
        like: Router of the model, for its sizes and positions.
        tolerance: See `DepthRoutingRouter.search`.
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
        """Return the rank of attention probabilities `[n, H, n]` below the diagonal, mean over
        heads.
        """
        ranks = torch.linalg.matrix_rank(probs.transpose(0, 1).tril(-1), rtol=self.tolerance)
        return float(ranks.float().mean())


@torch.inference_mode()
def mean_ranks(
    model: Any, batches: Sequence[Mapping[str, Any]], tolerance: float | None
) -> list[float]:
    """Compute the ARank of each layer over all samples, see `DepthRoutingRouter.search`."""
    ranks = _RankOfMaps(model.router, tolerance)
    for batch in batches:
        model(**batch, logits_to_keep=1, router=ranks)
    return [total / ranks.samples for total in ranks.ranks]
