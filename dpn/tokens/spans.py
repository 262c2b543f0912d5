"""`Span`: consecutive visual rows of an image, and the vision tower cells that they stand for."""

from dataclasses import dataclass, replace

import numpy as np

from dpn.tokens.grids import Grid, window_of_row

#: Row that represents each cell of the vision tower, `[cells]`, -1 for none; and the cells' grid.
CellMap = tuple[np.ndarray, Grid]


@dataclass(frozen=True)
class Span:
    """Consecutive visual rows of one image: all of them, or those of one tile or frame.

    Attributes:
        sample: Sample that the image belongs to.
        image: Index of the image among all images of the batch; the spans of an image follow each
            other.
        column: The first column of `input_ids` that the span stands for.
        grid: Height and width of the remaining rows; 1 x n once they no longer form a grid.
        owner: Row of this span that represents each cell of the vision tower, `[cells]`; -1 for
            cells that no row represents.
        source: Grid of those cells.
        entered: Number of rows that entered the decoder.
        width: Number of columns that the span stands for: 1 for an `<image>` column, or one for
            each cell.
        tail: 1 if the last column of `grid` holds newline tokens, else 0.
    """

    sample: int
    image: int
    column: int
    grid: Grid
    owner: np.ndarray
    source: Grid
    entered: int
    width: int = 1
    tail: int = 0

    @classmethod
    def start(
        cls, sample: int, image: int, column: int, grid: Grid, source: CellMap | None = None
    ) -> "Span":
        """Create the span of an image after the projector; by default every row is one cell."""
        owner, cells = source or (window_of_row(grid, (1, 1)), grid)
        return cls(sample, image, column, grid, owner, cells, grid[0] * grid[1])

    @classmethod
    def wide(cls, sample: int, image: int, column: int, grid: Grid, tail: int = 0) -> "Span":
        """Create a span that stands for one column of `input_ids` for each of its rows."""
        span = cls.start(sample, image, column, grid)
        return replace(span, width=span.rows, tail=tail)

    @property
    def rows(self) -> int:
        """Number of remaining rows."""
        return self.grid[0] * self.grid[1]

    @property
    def cells(self) -> int:
        """Number of the vision tower's cells."""
        return self.source[0] * self.source[1]

    @property
    def columns(self) -> range:
        """The columns that the span stands for."""
        return range(self.column, self.column + self.width)

    def first_cells(self) -> np.ndarray:
        """Return the first source cell of each row, `[rows]`."""
        first = np.zeros(self.rows, dtype=np.int64)
        cells = np.flatnonzero(self.owner >= 0)[::-1]
        first[self.owner[cells]] = cells  # from the last cell to the first: the first one remains
        return first

    def regroup(self, grid: Grid, target: np.ndarray, tail: int = 0) -> "Span":
        """Return the span after row i became part of row `target[i]` of a new grid; -1 drops it."""
        owner = np.where(self.owner >= 0, target[self.owner], -1) if self.rows else self.owner
        return replace(self, grid=grid, owner=owner, tail=tail)
