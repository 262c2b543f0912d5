"""Dense Connector: more of the tower's layers for the same decoder (arXiv 2405.13800)."""

from typing import Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.projectors._reduction import Rows, by_grid
from dpn.projectors._regions import levels_of
from dpn.projectors.base import Projector, ProjectorSizes
from dpn.projectors.mlp import mlp, mlp_flops
from dpn.tokens import Grid, window_of_row
from dpn.vision import ImageGroup, Needs, VisualFeatures

#: The source speaks of CLIP's 24 layers: hidden state i lies i/24 of the way.
DEPTH = 24
#: Tokens of an earlier layer that `sti` averages to one.
STRIDE = 8


class DenseConnectorProjector(Projector):
    """Hidden states of several layers besides the last ones, then the MLP. It compresses nothing: a
    control for what better features alone bring.

    Hidden state 0 is the one before the first layer.

    Args:
        kind: `sti` adds rows: the states 7 and 15 of 24 layers, each average-pooled over 8 tokens
            in a row, follow the image's own (of a last smaller run as well); `sci` puts the same
            two states beside each token, before the MLP; `dci`, the default, instead the means of
            the states 0 to 11 and 12 to 23.
        depth: linear layers of the MLP.
        keep: is ignored, as by `router=none`.
    """

    acts = "before the decoder, no compression"
    meets_keep = "never"
    own_weights = True
    ignores = ("keep",)

    def __init__(
        self,
        kind: Literal["sti", "sci", "dci"] = "dci",
        depth: int = 2,
        keep: float | None = None,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(**sizes)
        self.kind = kind
        states = range(DEPTH) if kind == "dci" else (7, 15)
        self.needs = Needs(layers=tuple(state / DEPTH for state in states))
        width = self.input_size if kind == "sti" else 3 * self.input_size
        self.layers = mlp(width, self.output_size, depth)

    def grid_after(self, grid: Grid) -> Grid:
        if self.kind != "sti":
            return grid
        cells = grid[0] * grid[1]
        return 1, cells + 2 * -(-cells // STRIDE)

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, after[0] * after[1])

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return by_grid(features, self._connect)

    def _connect(self, group: ImageGroup) -> list[Rows]:
        layers, after = group.layers, self.grid_after(group.grid)
        if self.kind == "sti":
            tokens = torch.cat([group.tokens, *map(averages, layers.unbind(2))], 1)
        elif self.kind == "sci":
            tokens = torch.cat([group.tokens, levels_of(layers)], -1)
        else:
            halves = layers.unflatten(2, (2, -1)).mean(3)
            tokens = torch.cat([group.tokens, levels_of(halves)], -1)
        owner: np.ndarray = window_of_row(group.grid, (1, 1))
        return [Rows(x, after, owner) for x in self.layers(tokens)]


def averages(tokens: Tensor) -> Tensor:
    """`[S, n, C]` averaged over runs of 8 tokens, the last one maybe shorter, `[S, n', C]`."""
    return F.avg_pool1d(tokens.mT, STRIDE, ceil_mode=True).mT
