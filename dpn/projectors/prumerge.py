"""PruMerge (arXiv 2403.15388): keeps the tokens that CLS attends to most, and merges others in."""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.ranges import AtLeast0, Layers
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid, inverse, on_host
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid
from dpn.vision import ImageGroup, Needs, VisualFeatures


class PruMergeProjector(ReducingProjector):
    """Keeps the outliers of CLS's attention and one token for all others, then applies the MLP.

    Attention and keys are those of the layer after the one whose output the tower returns (LLaVA's
    CLIP: layer 23, counted from 0; a tower without another layer uses its last). There is one
    softmax over the full width instead of one per head. A token is kept if its attention is an
    outlier: above the third quartile by more than 1.5 times the interquartile range. Tokens are
    ordered by falling attention. The tokens whose keys have the largest cosine are added to each,
    weighted by their attention. A last token is the sum of all tokens that were not kept, with the
    same weights; without outliers it is the only one. It needs no training but improves with it.

    Args:
        keep: Share of the tower's tokens that enter the decoder, the last one included: the tokens
            of largest attention instead of the outliers; null: all outliers of the image.
        neighbours: Number of tokens added to each (32 in the release).
        depth: Number of linear layers of the MLP.
    """

    needs_keep: ClassVar[bool] = False
    needs = Needs(attention="next", one_softmax=True)

    def __init__(
        self,
        keep: float | None = None,
        neighbours: AtLeast0 = 32,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.neighbours, self.adaptive = neighbours, keep is None

    def rows(self, cells: int) -> int:
        # At most a quarter of the tokens can be outliers.
        return cells // 4 + 1 if self.keep is None else super().rows(cells)

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs of the MLP, of CLS's attention and of the cosines."""
        cells, kept = grid[0] * grid[1], after[0] * after[1] - 1
        return super().flops(grid, after) + 2 * (1 + cells + kept * cells) * self.input_size

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return self.project(by_grid(features, self._merge))

    def _merge(self, group: ImageGroup) -> list[Rows]:
        attention = group.cls_attention(1)[:, 0]  # [S, n]
        order = attention.argsort(dim=1, descending=True, stable=True)
        if self.keep is None:
            counts = outliers(attention).tolist()
            kept = [self.choose(places, count) for places, count in zip(order, counts, strict=True)]
        else:
            count = self.rows(group.cells) - 1
            kept = [self.choose_exactly(places, count) for places in order]
        every = zip(group.tokens, group.token_keys, attention, kept, strict=True)
        return [merge(*one, self.neighbours) for one in every]

    def choose(self, order: Tensor, outliers: int) -> Tensor:
        """Return the tokens to keep, given all by falling attention `[n]`.

        Args:
            order: Places of the tokens.
            outliers: Number of outliers.
        """
        return order[:outliers]

    def choose_exactly(self, order: Tensor, count: int) -> Tensor:
        """Return `count` tokens to keep, given all by falling attention `[n]`."""
        return order[:count]


def outliers(attention: Tensor) -> Tensor:
    """Count the values of `[S, n]` that are above the third quartile by more than 1.5 times the
    interquartile range, `[S]`.
    """
    low, high = attention.quantile(attention.new_tensor([0.25, 0.75]), dim=1)
    return (attention > (high + 1.5 * (high - low))[:, None]).sum(1)


def merge(tokens: Tensor, keys: Tensor, attention: Tensor, kept: Tensor, neighbours: int) -> Rows:
    """Compute the rows of one image.

    Args:
        tokens: Tokens `[n, C]`.
        keys: Keys of the tokens, `[n, C]`.
        attention: Attention of CLS to the tokens, `[n]`.
        kept: Places of the tokens that are kept, `[k]`.
        neighbours: Number of tokens added to each.
    """
    cells = len(tokens)
    unit = F.normalize(keys.float(), dim=-1)
    cosine = (unit[kept] @ unit.T).scatter(1, kept[:, None], -torch.inf)  # [k, n]
    near = cosine.topk(min(neighbours, cells - 1), dim=1).indices  # [k, m]
    weighed = tokens * attention[:, None].to(tokens.dtype)
    merged = tokens[kept] + weighed[near].sum(1)
    rest = torch.ones_like(attention).index_fill(0, kept, 0).to(tokens.dtype)
    last = (weighed * rest[:, None]).sum(0, keepdim=True)
    owner = inverse(kept[None], cells)
    (host,) = on_host(torch.where(owner < 0, len(kept), owner))
    return Rows(torch.cat([merged, last]), (1, len(kept) + 1), host)
