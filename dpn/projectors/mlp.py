"""LLaVA-1.5's projector: two linear layers with a GELU between them (arXiv 2310.03744)."""

import torch
from torch import nn

from dpn.projectors.base import Projector
from dpn.tokens import Grid
from dpn.vision._features import VisualFeatures


class MLPProjector(Projector):
    """Linear, GELU, Linear on every token.

    Args:
        depth: number of linear layers (LLaVA's `mlp2x_gelu` has 2).
        gain: factor of PyTorch's default initial weights, which LLaVA takes as they are (1).
    """

    def __init__(
        self, depth: int = 2, gain: float = 1.0, *, input_size: int, output_size: int, grid: Grid
    ):
        super().__init__(input_size=input_size, output_size=output_size, grid=grid)
        self.layers = mlp(input_size, output_size, depth, gain)

    def flops(self, grid: Grid, after: Grid) -> int:
        """See `Projector.flops`."""
        return mlp_flops(self.layers, grid[0] * grid[1])

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        """See `Projector.forward`."""
        return VisualFeatures(self.layers(features.tokens), features.grids)


def mlp(
    input_size: int,
    output_size: int,
    depth: int,
    gain: float = 1.0,
    linear: type[nn.Linear] = nn.Linear,
) -> nn.Sequential:
    """`depth` layers of a class `linear` with GELUs between them; see `MLPProjector`."""
    layers: list[nn.Module] = [linear(input_size, output_size)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), linear(output_size, output_size)]
    made = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(gain)
    return made


def mlp_flops(layers: nn.Sequential, rows: int) -> int:
    """FLOPs (FMA = 2) of the linear layers for so many rows."""
    return sum(2 * rows * x.weight.numel() for x in layers if isinstance(x, nn.Linear))
