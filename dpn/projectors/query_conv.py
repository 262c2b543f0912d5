"""QueCC (arXiv 2411.03312): few tokens, computed with the question."""

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import nn

from dpn.common.ranges import AtLeast1, Layers
from dpn.projectors._reduction import Rows, by_grid, context_of
from dpn.projectors._regions import RegionAttention, RegionProjector, levels_of
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid, convolve_grid, window_of_row
from dpn.vision import ImageGroup, VisualFeatures


class QueryConvProjector(RegionProjector):
    """Computes one token per square region with queries that depend on the question, then the MLP.

    A vector of the question is added to every token. Two linear layers and a depthwise convolution
    turn the tokens into queries, one per region, and each attends to the tokens of several layers
    in its region.

    As in `quecc.py` and `clip_encoder.py` of locuslab/llava-token-compression, the vector is the
    decoder's last hidden state, without gradient, of the last token of the question, read without
    the image. Differences to the release: the text that is read is the whole instruction before
    the first answer, with system text and roles, where the release reads the words of the first
    question alone. Regions at the edge of a grid that the scale does not divide have fewer tokens;
    the convolution uses the weights of these, scaled as if the region were full.

    Args:
        scale: Kernel and stride of the convolution (the paper's 4 leaves 36 of 576 tokens).
        keep: Target share of the native grid's tokens; if given, it determines the scale.
        levels: Places of the layers whose hidden states are read, as shares of the tower's depth;
            default: those after 12, 16, 22 and 23 of 24 layers, as released.
        heads: Number of attention heads.
        depth: Number of linear layers of the MLP.
        question: `hidden`, as released, or `mean`: the mean of the instruction's text embeddings,
            with which models were trained that were saved without this setting.
    """

    def __init__(
        self,
        scale: AtLeast1 = 4,
        keep: float | None = None,
        levels: Sequence[float] = (0.5, 0.667, 0.917, 0.958),
        heads: AtLeast1 = 8,
        depth: Layers = 2,
        question: Literal["hidden", "mean"] = "mean",
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(scale, levels, keep, depth, **sizes)
        self.reads_question = question == "hidden"
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
        """FLOPs of the MLP, the question, the queries, the convolution and the attention."""
        width, cells, left = self.input_size, grid[0] * grid[1], after[0] * after[1]
        queries = self.output_size * width + 2 * cells * width**2 + left * width * self.scale**2
        return super().flops(grid, after) + 2 * queries + self.regions.flops(grid, self.kernel)

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        context = context_of(features)
        if self.reads_question:
            assert context.questions is not None
            read = context.questions
        else:
            read = torch.stack([text.mean(0) for text in context.instructions])
        questions = self.question(read.to(features.tokens.dtype))  # [I, C]
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
