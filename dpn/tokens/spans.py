"""`Span`: the visual rows of one image, and the cells of the vision tower that they represent."""

from dataclasses import dataclass, replace

import numpy as np

from dpn.tokens.grids import Grid, window_of_row

#: Row that represents each cell of the vision tower, `[cells]`, -1 for none; and the cells' grid.
CellMap = tuple[np.ndarray, Grid]


@dataclass(frozen=True)
class Span:
    """The visual rows of one image.

    Attributes:
        sample: Sample that the image belongs to.
        image: Index of the image among all images of the batch.
        column: The `<image>` column of `input_ids`.
        grid: Height and width of the remaining rows; 1 x n once they no longer form a grid.
        owner: Row of this span that represents each cell of the vision tower, `[cells]`; -1 for
            cells that no row represents.
        source: Grid of those cells.
    """

    sample: int
    image: int
    column: int
    grid: Grid
    owner: np.ndarray
    source: Grid

    @classmethod
    def start(
        cls, sample: int, image: int, column: int, grid: Grid, source: CellMap | None = None
    ) -> "Span":
        """Create the span of an image after the projector; by default every row is one cell."""
        owner, cells = source or (window_of_row(grid, (1, 1)), grid)
        return cls(sample, image, column, grid, owner, cells)

    @property
    def rows(self) -> int:
        """Number of remaining rows."""
        return self.grid[0] * self.grid[1]

    @property
    def entered(self) -> int:
        """Number of source cells: the rows that entered the decoder, if every row was one cell."""
        return self.source[0] * self.source[1]

    def first_cells(self) -> np.ndarray:
        """Return the first source cell of each row, `[rows]`."""
        first = np.zeros(self.rows, dtype=np.int64)
        cells = np.flatnonzero(self.owner >= 0)[::-1]
        first[self.owner[cells]] = cells  # from the last cell to the first: the first one remains
        return first

    def regroup(self, grid: Grid, target: np.ndarray) -> "Span":
        """Return the span after row i became part of row `target[i]` of a new grid; -1 drops it."""
        owner = np.where(self.owner >= 0, target[self.owner], -1) if self.rows else self.owner
        return replace(self, grid=grid, owner=owner)
