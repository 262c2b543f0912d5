"""AIM (arXiv 2412.03248): merges similar visual rows before the decoder and drops others inside."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from dpn.common.ranges import AtLeast0, Share
from dpn.routers._dropping import DroppingRouter, dot, of_spans, record, to_host
from dpn.routers.base import RouterSizes, RoutingContext, Where
from dpn.tokens import PackedTokens, Positions

#: `get_importance` of the source: temperature of its softmax, steps of its page rank.
TEMPERATURE, STEPS = 0.1, 5
#: Largest rounding error of a number of rows.
TINY = 1e-6
#: Number of rows whose similarities to all others are held at once.
SIMILARITIES = 1024


class AIMRouter(DroppingRouter):
    """Merges similar rows before layer 0 and drops the remaining ones over some later layers.

    As in LaVi-Lab/AIM: `token_merge.py` merges every second row into the most similar of the other
    rows (ToMe's bipartite matching, cosine of embeddings, plain average), at most half of the rows
    at a time, by default twice half of them. `modeling_qwen2.py` ranks rows after a layer by a page
    rank over its attention (softmax of logits / 0.1, 5 steps from a uniform start, root mean square
    over heads). It keeps int(n * (1 - (layer - first + 1) / steps)) of n merged rows after layer
    `first` and the following layers, none after the last of them.

    Differences to the release: rows are removed, where the release masks them, so they do not take
    part in later page ranks. The page rank covers the instruction only, in training too. Where less
    than half of the rows are merged at a time, rows keep their order in the image; in the release
    the unmerged rows come first. The release has one image per sample; here each image of a sample
    is treated by itself, and rows are merged within a tile or frame.

    Args:
        merge: Share of an image's rows that is left after merging.
        first: First layer after which rows are dropped; default: half of the depth, 14 of 28.
        steps: Number of layers after which rows are dropped; default: 8 of 28, scaled to the depth.
        positions: `keep`, as released: merged rows are numbered without gaps and keep their number
            when others are dropped; or `renumber`.
        keep: Target share of visual MACs, met by choosing `merge`.
    """

    trainable = False
    uncounted_flops = True

    def __init__(
        self,
        merge: Share = 0.25,
        first: AtLeast0 | None = None,
        steps: int | None = None,
        positions: Positions = "keep",
        keep: float | None = None,
        **sizes: Unpack[RouterSizes],
    ):
        layers = sizes["text"].num_layers
        self.first = layers // 2 if first is None else first
        self.steps = max(1, round(layers * 8 / 28)) if steps is None else steps
        super().__init__("post", positions, merge, (0.0, 1.0), keep, **sizes)

    def schedule(self, strength: float) -> dict[int, float]:
        """Share of the merged rows at each depth."""
        return {self.first + s: (self.steps - s) / self.steps for s in range(1, self.steps + 1)}

    def parts(self, strength: float) -> list[int]:
        """Number of merged rows of the whole image."""
        return [sum(merged_rows(strength, block.rows) for block in self.blocks)]

    def at(
        self, where: Where, layer: int, tokens: PackedTokens, context: RoutingContext
    ) -> PackedTokens:
        # Merging happens before layer 0, dropping after layers.
        if (where, layer) != ("pre", 0):
            return super().at(where, layer, tokens, context)
        merged = merge_similar(
            tokens, [merged_rows(self.strength, span.rows) for span in tokens.spans]
        )
        record(layer, tokens, merged, context)
        return merged.restart()

    def scores(self, tokens: PackedTokens, context: RoutingContext) -> list[Tensor]:
        """Page rank of the instruction's rows; 0 for an image that comes after the instruction."""
        rows: list[range] = []
        for sample, (begin, end) in enumerate(context.instruction):
            last = tokens.row(sample, max(end - 1, begin))
            seen = range(tokens.offsets[sample], last + 1)
            rows.append(seen if tokens.visual_rows[sample] else seen[:0])
        ranks = context.attention_scores(tokens, rows, page_rank)  # [H, R_b] per sample
        whole = []
        for rank, n in zip(ranks, tokens.lengths, strict=True):
            mean = rank.pow(2).mean(0).sqrt()
            whole.append(torch.nn.functional.pad(mean, (0, n - len(mean))))
        return of_spans(tokens, whole)


def merged_rows(share: float, entered: int) -> int:
    """Return the number of rows that merging leaves, at least one.

    As released, a round merges a share of the entered rows, rounded down: one half, then a quarter,
    and so on; the last round merges what is left to merge. So 183 of 729 rows are left at 0.25.
    """
    left, now = entered, 1.0
    while (merge := min(now / 2, now - share)) * entered > 1 - TINY:
        left -= int(merge * entered + TINY)
        now -= merge
    return left


def page_rank(probs: Tensor) -> Tensor:
    """Compute the page rank `[h, R]` of a sample's first R rows from their attention in h heads.

    Args:
        probs: Attention probabilities, `[R, h, n]`.
    """
    count = len(probs)
    square = probs[:, :, :count].transpose(0, 1)  # [h, R, R]
    moves = square.log().div_(TEMPERATURE).softmax(-1)
    mass = moves.new_full((moves.shape[0], 1, count), 1 / max(count, 1))
    for _ in range(STEPS):
        mass = dot(mass, moves)
    return mass[:, 0]


def merge_similar(tokens: PackedTokens, counts: Sequence[int]) -> PackedTokens:
    """Merge rows of every image until `counts` are left, at most half of them at a time."""
    while any(span.rows > n for span, n in zip(tokens.spans, counts, strict=True)):
        targets = [
            matched(tokens.hidden.narrow(0, start, span.rows), span.rows - n)
            for span, start, n in zip(tokens.spans, tokens.starts, counts, strict=True)
        ]
        tokens = tokens.merge(to_host(targets))
    return tokens


@torch.no_grad()
def matched(rows: Tensor, remove: int) -> Tensor:
    """Match rows in one round of bipartite matching (ToMe, arXiv 2210.09461).

    Args:
        rows: Rows `[n, D]` of an image; even rows may merge into odd ones.
        remove: Number of rows to merge; at most half of all rows are.

    Returns:
        New row of each row, `[n]`.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    remove = min(remove, len(rows) // 2)
    target = torch.arange(len(rows), device=rows.device)
    if remove:
        found = [dot(some, unit[1::2].T).max(-1) for some in unit[::2].split(SIMILARITIES)]
        best, index = map(torch.cat, zip(*found, strict=True))
        source = best.argsort(descending=True, stable=True)[:remove]
        target[2 * source] = 2 * index[source] + 1
    stays = torch.zeros_like(target).index_fill(0, target, 1)
    return (stays.cumsum(0) - 1)[target]
