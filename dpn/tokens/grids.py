"""Pooling and convolution on grids of visual tokens."""

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
Kernel = tuple[int, int]
Reduce = Literal["max", "avg"]


class Block(NamedTuple):
    """Visual tokens of an image, tile or frame, in raster order.

    Attributes:
        grid: Height and width, newline tokens included.
        tail: 1 if each line ends with a newline token, else 0.
    """

    grid: Grid
    tail: int = 0

    @property
    def rows(self) -> int:
        """Number of visual tokens."""
        return self.grid[0] * self.grid[1]


def pooled_grid(grid: Grid, kernel: Kernel, tail: int = 0) -> Grid:
    """Return the grid after pooling with kernel = stride, counting smaller windows at the edges.

    Args:
        grid: Grid of the rows.
        kernel: Height and width of a window.
        tail: 1 if the last column of the grid holds newline tokens, which are pooled only among
            each other; 0 if there are none.
    """
    return -(-grid[0] // kernel[0]), -(-(grid[1] - tail) // kernel[1]) + tail


def kernel_on(grid: Grid, kernel: Kernel) -> Kernel:
    """Return the kernel that pools a grid: a grid of height 1 is pooled along its width, with a
    window of as many rows as the kernel has cells.
    """
    return (1, kernel[0] * kernel[1]) if grid[0] == 1 else kernel


@lru_cache(maxsize=4096)
def window_of_row(grid: Grid, kernel: Kernel, tail: int = 0) -> np.ndarray:
    """Return the index of the pooled row that each row of a grid falls into, `[h * w]`; see
    `pooled_grid`.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    width = pooled_grid(grid, kernel, tail)[1]
    place = np.where(columns < grid[1] - tail, columns // kernel[1], width - 1)
    return rows // kernel[0] * width + place


def pool_grid(hidden: Tensor, kernel: Kernel, reduce: Reduce = "max", tail: int = 0) -> Tensor:
    """Pool `[S, h, w, D]` with kernel = stride; windows at the edges may be smaller.

    Returns:
        `[S, h', w', D]` of the grid that `pooled_grid` returns.
    """
    if tail:
        body, newlines = hidden.split((hidden.shape[2] - tail, tail), 2)
        parts = (pool_grid(body, kernel, reduce), pool_grid(newlines, (kernel[0], 1), reduce))
        return torch.cat(parts, 2)
    pool = F.max_pool2d if reduce == "max" else F.avg_pool2d
    # The permuted view is channels_last memory, which both kernels support natively: no copy.
    return pool(hidden.permute(0, 3, 1, 2), kernel, ceil_mode=True).permute(0, 2, 3, 1)


def convolve_grid(hidden: Tensor, weight: Tensor) -> Tensor:
    """Convolve `[S, h, w, D]` depthwise with kernel = stride and weight `[D, 1, kh, kw]`.

    A smaller window at the edge uses only the weights of its real cells and scales the result by
    kernel area / real cells. At the initial weights 1 / (kh * kw) this is the window's average.
    """
    kernel = (weight.shape[2], weight.shape[3])
    height, width = pooled_grid((hidden.shape[1], hidden.shape[2]), kernel)
    missing = (0, width * kernel[1] - hidden.shape[2], 0, height * kernel[0] - hidden.shape[1])
    x = hidden.permute(0, 3, 1, 2)
    full = hidden.new_ones(1, 1, hidden.shape[1], hidden.shape[2])
    if any(missing):
        x, full = F.pad(x, missing), F.pad(full, missing)
    share = F.avg_pool2d(full, kernel)  # [1, 1, h', w'] real cells / kernel area
    return (F.conv2d(x, weight.to(x.dtype), stride=kernel, groups=x.shape[1]) / share).permute(
        0, 2, 3, 1
    )
