"""Dense Connector (arXiv 2405.13800): features of several layers of the tower."""

from typing import Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpn.common.ranges import Layers
from dpn.projectors._reduction import Rows, by_grid
from dpn.projectors._regions import levels_of
from dpn.projectors.base import Projector, ProjectorSizes
from dpn.projectors.mlp import mlp, mlp_flops
from dpn.tokens import Grid, window_of_row
from dpn.vision import ImageGroup, Needs, VisualFeatures

#: The paper's hidden states are those of CLIP's 24 layers; state i lies at i / 24 of the depth.
DEPTH = 24
#: Number of tokens of an earlier layer that `sti` averages to one.
STRIDE = 8


class DenseConnectorProjector(Projector):
    """Adds hidden states of earlier layers to the tower's tokens, then applies the MLP.

    It does not compress: it shows the gain from better features alone. Hidden state 0 is the one
    before the first layer.

    Args:
        kind: How the states are added. `sti`: the states 7 and 15 of 24 layers, average-pooled over
            8 consecutive tokens (fewer at the end), follow the image's tokens. `sci`: the same two
            states are concatenated to each token before the MLP. `dci`: instead of them, the means
            of the states 0 to 11 and 12 to 23 are.
        depth: Number of linear layers of the MLP.
        keep: Ignored, so that sweeps can include this projector.
    """

    acts = "before the decoder, no compression"
    meets_keep = "never"
    own_weights = True
    ignores = ("keep",)

    def __init__(
        self,
        kind: Literal["sti", "sci", "dci"] = "dci",
        depth: Layers = 2,
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
    """Average `[S, n, C]` over runs of 8 tokens, of which the last may be shorter, `[S, n', C]`."""
    return F.avg_pool1d(tokens.mT, STRIDE, ceil_mode=True).mT
