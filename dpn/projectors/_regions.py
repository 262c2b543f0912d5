"""Base class of projectors whose queries each attend to one region of the image."""

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpn.projectors._reduction import ReducingProjector
from dpn.projectors.base import ProjectorSizes
from dpn.tokens import Grid, Kernel, pooled_grid
from dpn.vision import Needs


def nearest_scale(grid: Grid, keep: float) -> int:
    """Return the side of square regions whose number is closest to a share `keep` of a grid."""

    def gap(scale: int) -> float:
        height, width = pooled_grid(grid, (scale, scale))
        return abs(height * width / (grid[0] * grid[1]) - keep)

    return min(range(1, max(grid) + 1), key=gap)


class RegionProjector(ReducingProjector):
    """Computes one token for each square region of the grid, from several layers of the tower.

    Args:
        scale: Side of a region.
        levels: Places of the layers whose hidden states are read, as shares of the tower's depth.
        keep: Target share of the native grid's tokens; if given, it determines the scale.
        depth: Number of linear layers of the MLP.
    """

    meets_keep = "roughly"
    own_weights = True
    needs_keep: ClassVar[bool] = False

    def __init__(
        self,
        scale: int,
        levels: Sequence[float],
        keep: float | None,
        depth: int,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(keep, depth, **sizes)
        self.scale = scale if keep is None else nearest_scale(self.grid, keep)
        self.needs = Needs(layers=tuple(levels))

    @property
    def kernel(self) -> Kernel:
        """Height and width of a region in tokens."""
        return self.scale, self.scale

    def grid_after(self, grid: Grid) -> Grid:
        return pooled_grid(grid, self.kernel)

    def check(self) -> list[str]:
        problems = super().check()
        if self.scale < 1:
            problems.append(f"projector.scale={self.scale} must be at least 1.")
        return problems


class RegionAttention(nn.Module):
    """Attention in which each query attends to the tokens of its own region only.

    Args:
        width: Width of queries and result, C.
        source_size: Width of the tokens that are attended to.
        heads: Number of attention heads.
        linear: Class of the linear layers, which determines their initial values.
    """

    def __init__(
        self, width: int, source_size: int, heads: int, linear: type[nn.Linear] = nn.Linear
    ):
        super().__init__()
        self.source_size = source_size
        self.keys = _two_layers(source_size, width, linear)
        self.values = _two_layers(source_size, width, linear)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, queries: Tensor, source: Tensor, grid: Grid, kernel: Kernel) -> Tensor:
        """Compute the attention of each query to its region.

        Args:
            queries: One query per region, `[S, h' * w', C]`.
            source: Tokens that are attended to, `[S, h * w, source_size]`.
            grid: Height and width of the tokens' grid, h and w.
            kernel: Height and width of a region; regions at the edge may be smaller.

        Returns:
            One row per query, `[S, h' * w', C]`.
        """
        keys, values = (
            windows(part(source).unflatten(1, grid), kernel) for part in (self.keys, self.values)
        )
        cells = windows(source.new_ones(len(source), *grid, 1), kernel)[..., 0]
        padding = None if cells.numel() == source.shape[0] * source.shape[1] else cells == 0
        seen, _ = self.attention(
            queries.flatten(0, 1)[:, None], keys, values, padding, need_weights=False
        )
        return seen.view(queries.shape)

    def flops(self, grid: Grid, kernel: Kernel) -> int:
        """Return the FLOPs (FMA = 2) of one image."""
        width = self.attention.embed_dim
        cells, regions = grid[0] * grid[1], _product(pooled_grid(grid, kernel))
        padded = regions * _product(kernel)
        two_layers = cells * (self.source_size + width) * width
        attend = 2 * regions * width**2 + 2 * padded * width**2 + 2 * padded * width
        return 2 * (2 * two_layers + attend)


def windows(x: Tensor, kernel: Kernel) -> Tensor:
    """Cut `[S, h, w, C]` into regions `[S * h' * w', kh * kw, C]`, padded with zeros."""
    height, width = pooled_grid((x.shape[1], x.shape[2]), kernel)
    kh, kw = kernel
    x = F.pad(x, (0, 0, 0, width * kw - x.shape[2], 0, height * kh - x.shape[1]))
    x = x.unflatten(2, (width, kw)).unflatten(1, (height, kh))  # [S, h', kh, w', kw, C]
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


class SmallLinear(nn.Linear):
    """Linear layer, initialised from a normal of deviation 0.02 cut at 2, with a bias of zero."""

    def reset_parameters(self) -> None:
        """Initialise; PyTorch's constructor calls this, and Hugging Face for new weights."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _two_layers(source_size: int, width: int, linear: type[nn.Linear]) -> nn.Sequential:
    return nn.Sequential(
        linear(source_size, width),
        nn.GELU(),
        linear(width, width),
        nn.LayerNorm(width, eps=1e-6),
    )


def _product(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]


def resized(tokens: Tensor, grid: Grid, after: Grid) -> Tensor:
    """Resize tokens `[S, h * w, C]` to another grid bilinearly, `[S, h' * w', C]`."""
    x = tokens.transpose(1, 2).unflatten(2, grid).float()
    small = F.interpolate(x, after, mode="bilinear", align_corners=False)
    return small.flatten(2).transpose(1, 2).to(tokens.dtype)


def levels_of(layers: Tensor) -> Tensor:
    """Concatenate hidden states `[S, n, K, C]` of K layers, `[S, n, K * C]`."""
    return torch.flatten(layers, 2)
