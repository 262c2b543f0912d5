"""MQT (arXiv 2405.19315): a query transformer of which any number of first queries can be used."""

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpn.common.ranges import AtLeast1
from dpn.projectors._reduction import Rows, by_grid, context_of
from dpn.projectors.base import Projector, ProjectorSizes
from dpn.tokens import Grid
from dpn.vision import ImageGroup, VisualFeatures
from dpn.vision.vit import sincos_positions


class MatryoshkaQueryProjector(Projector):
    """The first m of several learned queries attend to the tokens of an image.

    m is drawn for each training step and chosen at inference. As in the release, queries have the
    sine-cosine positions of a square grid, keys are the positions of the tokens (the same table,
    resized bicubically) and values are the tokens, each after a LayerNorm; one matrix maps the
    result to the decoder's width. Models that were saved with another table keep theirs. Training
    draws m from 2, 4, ... up to all queries, the same for
    all images and processes. A row does not belong to particular cells of the image.

    Args:
        queries: Number of learned queries, a square number.
        rows: M at inference, and in training without draws; null: all queries.
        keep: Target share of the tower's tokens; if given, it determines `rows`, up to the number
            of queries.
        elastic: Whether training draws m; the first stage of the paper uses all queries.
        heads: Number of attention heads.
    """

    meets_keep = "roughly"  # at most as many tokens as queries
    own_weights = True

    def __init__(
        self,
        queries: AtLeast1 = 256,
        rows: AtLeast1 | None = None,
        keep: float | None = None,
        elastic: bool = True,
        heads: AtLeast1 = 16,
        **sizes: Unpack[ProjectorSizes],
    ):
        super().__init__(**sizes)
        self.count, self.rows, self.keep, self.elastic = queries, rows, keep, elastic
        width, side = self.input_size, math.isqrt(queries)
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(queries, width), std=0.02))
        # The first half of an embedding is that of the column, as in MAE's code; the transposed
        # table has it so.
        table = sincos_positions((side, side), width, 10_000).unflatten(0, (side, side))
        self.register_buffer("positions", table.transpose(0, 1).flatten(0, 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.output = nn.Parameter(torch.randn(width, self.output_size) * self.output_size**-0.5)

    def rows_of(self, grid: Grid) -> int:
        """Return m at inference."""
        if self.keep is not None:
            return min(self.count, max(1, round(self.keep * grid[0] * grid[1])))
        return self.count if self.rows is None else self.rows

    def grid_after(self, grid: Grid) -> Grid:
        return 1, self.rows_of(grid)

    def flops(self, grid: Grid, after: Grid) -> int:
        """FLOPs of the attention and of the output matrix."""
        cells, rows, width = grid[0] * grid[1], after[1], self.input_size
        attend = 2 * (rows + cells) * width**2 + 2 * rows * cells * width
        return 2 * (attend + rows * width * self.output_size)

    def check(self) -> list[str]:
        problems = super().check()
        if self.count < 2 or math.isqrt(self.count) ** 2 != self.count:
            problems.append(f"projector.queries={self.count} must be a square number, e.g. 256.")
        if self.rows is not None and not 1 <= self.rows <= self.count:
            problems.append(
                f"projector.rows={self.rows} must lie between 1 and projector.queries={self.count}."
            )
        return problems

    def forward(self, features: VisualFeatures) -> VisualFeatures:
        drawn: int | None = None
        if self.training and self.elastic:
            drawn = 2 + 2 * int(context_of(features).draw_for_step() * (self.count // 2))

        def read(group: ImageGroup) -> list[Rows]:
            rows = self._read(group, drawn or self.rows_of(group.grid))
            return [Rows(x, (1, len(x))) for x in rows]

        return by_grid(features, read)

    def _read(self, group: ImageGroup, rows: int) -> Tensor:
        images = len(group.tokens)
        table: Tensor = self.positions  # type: ignore[assignment]
        side = math.isqrt(self.count)
        square = table.float().T.reshape(1, -1, side, side)
        places = F.interpolate(square, group.grid, mode="bicubic").flatten(2)[0].T.to(table.dtype)
        query_norm, key_norm, value_norm = self.norms
        queries = query_norm((self.queries + table)[:rows]).expand(images, -1, -1)
        keys = key_norm(places).expand(images, -1, -1)
        values = value_norm(group.tokens)
        read, _ = self.attention(queries, keys, values, need_weights=False)
        return read @ self.output
