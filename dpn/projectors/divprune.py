"""DivPrune (arXiv 2503.02175): keeps the most diverse tokens."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.ranges import Layers
from dpn.projectors._reduction import ReducingProjector, Rows, by_grid, chosen
from dpn.projectors.base import ProjectorSizes
from dpn.projectors.mlp import mlp_flops
from dpn.tokens import Grid
from dpn.vision import ImageGroup, VisualFeatures


class DivPruneProjector(ReducingProjector):
    """Applies the MLP, then chooses tokens greedily by max-min cosine distance, in their order.

    The first token is the one whose nearest other token is farthest away; each next token is the
    one whose nearest chosen token is farthest away. No token is chosen twice; the paper does not
    say what happens to equal tokens. It needs no training.

    Args:
        keep: Share of the tower's tokens that are chosen; the paper's 0.098 is 56 of 576.
        depth: Number of linear layers of the MLP.
    """

    trainable = False
    per_image = True

    def __init__(
        self,
        keep: float = 0.098,
        depth: Layers = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs of the MLP and of the cosine of every pair."""
        cells = grid[0] * grid[1]
        return mlp_flops(self.layers, cells) + 2 * cells**2 * self.output_size

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return by_grid(self.project(features), self._choose)

    def _choose(self, group: ImageGroup) -> list[Rows]:
        unit = F.normalize(group.tokens.detach().float(), dim=-1)
        return chosen(group, max_min(1 - unit @ unit.mT, self.rows(group.cells)))


def max_min(distance: Tensor, count: int) -> Tensor:
    """Choose points that are far apart from each other.

    Args:
        distance: Distances between points, `[S, n, n]`.
        count: Number of points to choose, at most n.

    Returns:
        Their places, ascending, `[S, count]`.
    """
    every = torch.arange(len(distance), device=distance.device)
    nearest = distance.topk(min(2, distance.shape[1]), 1, largest=False).values[:, -1]  # [S, n]
    gone = torch.zeros_like(nearest)  # -inf for chosen points
    picked: list[Tensor] = []
    for _ in range(count):
        place = (nearest + gone).argmax(1)
        gone[every, place] = -torch.inf
        here = distance[every, place]
        nearest = torch.minimum(nearest, here) if picked else here
        picked.append(place)
    return torch.stack(picked, 1).sort(1).values
