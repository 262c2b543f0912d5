"""QueCC: few tokens that know the question (arXiv 2411.03312)."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import nn

from dpn.projectors._reduction import Rows, by_grid, context_of
from dpn.projectors._regions import RegionAttention, RegionProjector, levels_of
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid, convolve_grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class QueryConvProjector(RegionProjector):
    """The question is added to every token; two linear layers and a depthwise convolution make the
    queries, one per square region; each attends to the tokens of several layers in its region; the
    result goes through the MLP.

    Which embedding of the question is added is open in the sources that we have: here the mean of
    the text embeddings of the instruction, never of an answer. A region at the edge of a grid that
    does not divide has fewer tokens, and the convolution the weights of these, scaled as if it were
    full.

    Args:
        scale: kernel and stride of the convolution (the source's 4 leaves 36 of 576 tokens).
        keep: instead of the scale, the one that leaves nearly this share of the native grid.
        levels: after which shares of the tower's layers its hidden states are read (as
            TokenPacker's; which ones the source reads is open).
        heads: of the attention.
        depth: linear layers of the MLP.
    """

    def __init__(
        self,
        scale: int = 4,
        keep: float | None = None,
        levels: Sequence[float] = (0.5, 0.667, 0.917, 0.958),
        heads: int = 8,
        depth: int = 2,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(scale, levels, keep, depth, **sizes)
        width = self.input_size
        self.question = nn.Sequential(
            nn.Linear(self.output_size, width), nn.LayerNorm(width, eps=1e-6)
        )
        self.queries = nn.Sequential(
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, width),
            nn.LayerNorm(width, eps=1e-6),
        )
        self.convolution = nn.Conv2d(width, width, self.scale, self.scale, groups=width)
        self.regions = RegionAttention(width, len(levels) * width, heads)

    def flops(self, grid: Grid, after: Grid) -> int:
        """The MLP, the question, the queries, the convolution and the attention."""
        width, cells, left = self.input_size, grid[0] * grid[1], after[0] * after[1]
        queries = self.output_size * width + 2 * cells * width**2 + left * width * self.scale**2
        return super().flops(grid, after) + 2 * queries + self.regions.flops(grid, self.kernel)

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        texts = context_of(features).instructions
        means = torch.stack([text.mean(0) for text in texts]).to(features.tokens.dtype)
        questions = self.question(means)  # [I, C]
        bias = self.convolution.bias
        assert bias is not None

        def compress(group: ImageGroup) -> list[Rows]:
            after = self.grid_after(group.grid)
            asked = self.queries(group.tokens + questions[list(group.members), None])
            maps = convolve_grid(asked.unflatten(1, group.grid), self.convolution.weight)
            queries = (maps + bias).flatten(1, 2)
            rows = self.regions(queries, levels_of(group.layers), group.grid, self.kernel)
            owner = window_of_row(group.grid, self.kernel)
            return [Rows(x, after, owner) for x in rows]

        return self.project(by_grid(features, compress))
