"""SparseVLM (arXiv 2410.04417): drops the visual rows that relevant words of the question attend to
least, and merges some of them into a few rows.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from dpn.routers._dropping import DroppingRouter, dot, mean_attention, to_host
from dpn.routers.base import RouterSizes, RoutingContext
from dpn.tokens import PackedTokens, Positions

#: Numbers of layers before each cut, of 32: the released cuts are after layers 2, 6 and 15.
DEPTHS = (3, 7, 16)
#: Number of visual rows whose weights of the text are held at once.
WEIGHTS = 4096


class SparseVLMRouter(DroppingRouter):
    """After some layers, keeps the visual rows that the raters attend to most in that layer.

    As in version 1.0 of Gumpest/SparseVLMs (`modelling_sparse_llama.py`, `score.py`): every visual
    row distributes a softmax of dot products over the embeddings of the text after the image, and
    the raters are the text rows that get more than the mean weight. The score of a visual row is
    the attention that it gets from the raters, mean over heads and raters. Of m dropped rows, the
    int(0.3 m) + 1 best are merged into a tenth of their number, plus one, by density peaks
    clustering (k nearest neighbours, k = number of clusters). Merged rows come after the kept ones.

    Differences to the release: only the instruction's text is used, in training too. If there is no
    text after the first image, or no row gets more than the mean, all of the instruction's text are
    raters. No noise is added to the densities. A cut that gets no more rows than it may keep drops
    none instead of one. The release has one image per sample; here each image, tile or frame is
    pruned by itself, with the same raters.

    Args:
        layers: Layers after which rows are dropped; default: 2, 6 and 15 of 32, scaled to the
            depth.
        counts: Share of an image's rows that is kept after each of these layers; default: 300, 200
            and 110 of 576, the released counts for 192 rows on average.
        recycle: Whether the best of the dropped rows are merged.
        positions: `renumber`, as released, or `keep`.
        keep: Target share of visual MACs, met by raising all `counts` to one power (our choice; the
            paper has four tables of counts).
    """

    trainable = False
    uncounted_flops = True

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        counts: Sequence[float] = (300 / 576, 200 / 576, 110 / 576),
        recycle: bool = True,
        positions: Positions = "renumber",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        self.layers = like_depths(sizes["text"].num_layers) if layers is None else list(layers)
        self.counts, self.recycle = list(counts), recycle
        super().__init__("post", positions, 1.0, (0.0, 16.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """Share of the rows at each depth, the counts to the power of the strength."""
        pairs = zip(self.layers, self.counts, strict=False)
        return {layer + 1: share**strength for layer, share in pairs}

    def parts(self, strength: float) -> list[int]:
        """Number of rows of each tile."""
        return [block.rows for block in self.blocks]

    def kept(self, share: float, entered: int, now: int) -> int:
        """Return the number of rows that are kept unchanged."""
        return min(now, round(entered * share))

    def left(self, share: float, entered: int, now: int) -> int:
        """Return the number of rows that are left, merged ones included."""
        kept = self.kept(share, entered, now)
        return kept + self.recycled(now - kept)[1]

    def recycled(self, dropped: int) -> tuple[int, int]:
        """Return how many of the dropped rows are merged, and into how many rows."""
        if not self.recycle or not dropped:
            return 0, 0
        merged = int(dropped * 0.3) + 1
        return merged, int(merged / 10) + 1

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Attention that each row gets from the raters in the layer that ran."""
        every = raters(context)
        rows = [[tokens.row(b, column) for column in columns] for b, columns in enumerate(every)]
        return mean_attention(tokens, context, rows)

    @torch.no_grad()
    def targets(self, hidden: Tensor, scores: Tensor, kept: int) -> Tensor:
        """Return the new row of each row of a span, -1 if it is dropped."""
        order = scores.argsort(descending=True, stable=True)
        merged, clusters = self.recycled(len(order) - kept)
        target = torch.full_like(order, -1)
        target[order[:kept].sort().values] = torch.arange(kept, device=order.device)
        if merged:
            again = order[kept : kept + merged]
            target[again] = kept + density_peaks(hidden[again].float(), clusters)
        return target

    def reduce(self, tokens: PackedTokens, scores: Sequence[Tensor], share: float) -> PackedTokens:
        """Keep the rows with the highest scores and merge some of the others."""
        targets = [
            self.targets(
                tokens.hidden.narrow(0, start, span.rows),
                score,
                self.kept(share, span.entered, span.rows),
            )
            for span, start, score in zip(tokens.spans, tokens.starts, scores, strict=True)
        ]
        return tokens.merge(to_host(targets))

    def check(self) -> list[str]:
        if len(self.counts) != len(self.layers) or len(set(self.layers)) < len(self.layers):
            return [
                f"router.counts gives {len(self.counts)} shares for router.layers={self.layers};"
                " give one for each layer, and no layer twice."
            ]
        if not all(0 < share <= 1 for share in self.counts):
            return [f"router.counts={self.counts} must be larger than 0 and at most 1."]
        return super().check()


def like_depths(num_layers: int) -> list[int]:
    """Scale the layers before the released cuts, 2, 6 and 15 of 32, to another decoder."""
    layers: list[int] = []
    for depth in DEPTHS:
        layers.append(max(round(depth * num_layers / 32) - 1, layers[-1] + 1 if layers else 0))
    return layers


@torch.no_grad()
def raters(context: RoutingContext) -> list[list[int]]:
    """Return the columns of each sample's raters; none without an image."""
    pack = context.entered
    assert pack is not None, "the layer loop gives it"
    images: dict[int, list[int]] = {}
    first_ends: dict[int, int] = {}  # columns after the first image
    for same in pack.images:
        last = pack.spans[same[-1]]
        images.setdefault(last.sample, []).extend(same)
        first_ends.setdefault(last.sample, last.columns.stop)
    every: list[list[int]] = []
    for sample, (begin, end) in enumerate(context.instruction):
        places = images.get(sample, [])
        marks = {c for place in places for c in pack.spans[place].columns}
        text = [c for c in range(begin, end) if c not in marks]
        text = [c for c in text if c >= first_ends.get(sample, end)] or text
        if not places or not text:
            every.append([])
            continue
        visual = [pack.hidden.narrow(0, pack.starts[i], pack.spans[i].rows) for i in places]
        words = pack.hidden[[pack.row(sample, column) for column in text]]
        rows = torch.cat(visual)
        parts = [dot(some, words.T).softmax(-1).sum(0) for some in rows.split(WEIGHTS)]
        weight = torch.stack(parts).sum(0) / len(rows)  # [text]
        above = (weight > weight.mean()).tolist()
        every.append([c for c, high in zip(text, above, strict=True) if high] or text)
    return every


def density_peaks(rows: Tensor, clusters: int) -> Tensor:
    """Cluster rows by density peaks with nearest neighbours, as `cluster_and_merge` of the release.

    Args:
        rows: Rows `[n, D]`.
        clusters: Number of clusters, at most n, and of neighbours that define a row's density.

    Returns:
        Cluster of each row, `[n]`; every cluster has at least one row.
    """
    distance = torch.cdist(rows, rows) / rows.shape[1] ** 0.5
    near = distance.topk(clusters, largest=False).values
    density = (-near.pow(2).mean(-1)).exp()
    denser = density[None, :] > density[:, None]
    apart = torch.where(denser, distance, distance.max()).min(-1).values
    centres = (apart * density).topk(clusters).indices
    cluster = distance[centres].argmin(0)
    cluster[centres] = torch.arange(clusters, device=rows.device)
    return cluster
