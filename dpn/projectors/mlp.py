"""LLaVA-1.5's projector: two linear layers with a GELU between them (arXiv 2310.03744)."""

from typing import Unpack

from torch import nn

from dpn.common.ranges import Layers
from dpn.projectors.base import Projector, ProjectorSizes
from dpn.tokens import Grid
from dpn.vision import VisualFeatures


class MLPProjector(Projector):
    """Applies linear layers with GELUs between them to every token.

    Args:
        depth: Number of linear layers (LLaVA's `mlp2x_gelu` has 2).
        keep: Ignored, so that sweeps can include this projector: all tokens are kept.
    """

    acts = "nowhere"
    meets_keep = "never"
    ignores = ("keep",)

    def __init__(
        self,
        depth: Layers = 2,
        keep: float | None = None,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(**sizes)
        self.layers = mlp(self.input_size, self.output_size, depth)

    def flops(self, grid: Grid, after: Grid) -> int:
        return mlp_flops(self.layers, grid[0] * grid[1])

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        return VisualFeatures(self.layers(features.tokens), features.grids)


def mlp(
    input_size: int,
    output_size: int,
    depth: int,
    linear: type[nn.Linear] = nn.Linear,
) -> nn.Sequential:
    """Build `depth` linear layers with GELUs between them, see `MLPProjector`.

    With a depth of 0 tokens stay as they are.
    """
    layers: list[nn.Module] = []
    for size in [input_size, *(output_size,) * (depth - 1)][:depth]:
        layers += [nn.GELU(), linear(size, output_size)]
    return nn.Sequential(*layers[1:])


def mlp_flops(layers: nn.Sequential, rows: int) -> int:
    """Return the FLOPs (FMA = 2) of the linear layers for a number of rows."""
    return sum(2 * rows * x.weight.numel() for x in layers if isinstance(x, nn.Linear))
