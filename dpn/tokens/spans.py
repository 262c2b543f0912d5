"""Where the rows of an image stand, and which cells of the vision tower each of them holds."""

from dataclasses import dataclass, replace

import numpy as np

from dpn.tokens.grids import Grid, window_of_row

#: `[cells]` which row holds each cell of the vision tower, -1 if none does; and their grid.
Source = tuple[np.ndarray, Grid]


@dataclass(frozen=True)
class Span:
    """The visual rows of one image.

    Attributes:
        sample: whose image it is.
        image: place among the batch's flat images.
        column: the `<image>` column of `input_ids`.
        grid: height and width of the rows that are left; 1 x n once they form no grid.
        owner: `[cells]` which of these rows holds each of the vision tower's cells, -1 if none
            does.
        source: grid of those cells.
    """

    sample: int
    image: int
    column: int
    grid: Grid
    owner: np.ndarray
    source: Grid

    @classmethod
    def start(
        cls, sample: int, image: int, column: int, grid: Grid, source: Source | None = None
    ) -> "Span":
        """The rows that a projector left of an image; by default every row is a cell."""
        owner, cells = source or (window_of_row(grid, (1, 1)), grid)
        return cls(sample, image, column, grid, owner, cells)

    @property
    def rows(self) -> int:
        """How many rows are left."""
        return self.grid[0] * self.grid[1]

    @property
    def entered(self) -> int:
        """How many rows entered the decoder."""
        return self.source[0] * self.source[1]

    def first_cells(self) -> np.ndarray:
        """The first source cell of each row, [rows]."""
        first = np.zeros(self.rows, dtype=np.int64)
        cells = np.flatnonzero(self.owner >= 0)[::-1]
        first[self.owner[cells]] = cells  # written from the last to the first: the first one stays
        return first

    def regroup(self, grid: Grid, target: np.ndarray) -> "Span":
        """The span after row i went into row `target[i]` of a new grid, -1 if it is gone."""
        owner = np.where(self.owner >= 0, target[self.owner], -1) if self.rows else self.owner
        return replace(self, grid=grid, owner=owner)
