"""Projectors that need no training, on the visual tokens of a stock model before layer 0."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dpn.compressed._tower import AttentionReader
from dpn.families import Image, Part
from dpn.model.modeling import image_context
from dpn.projectors import Projector
from dpn.routers import RoutingContext
from dpn.tokens import Grid, PackedTokens, Span
from dpn.vision import VisualFeatures


@dataclass(frozen=True)
class Unit:
    """Visual tokens that a projector reduces together.

    Attributes:
        pieces: Index of a span and places of cells in it, `[n]`, for each span with some of them.
        grid: Grid of the tokens; 1 x n if they form none.
        values: Attention that each token receives, and its keys, `[tokens, 1 + C]`; None if the
            projector does not read them.
    """

    pieces: tuple[tuple[int, np.ndarray], ...]
    grid: Grid
    values: Tensor | None = None


class ReadImages(list[Image]):
    """Encoded images of one kind whose tower's attention was read.

    Attributes:
        parts: Parts of each image, see `Family.parts`.
    """

    def __init__(self, images: Sequence[Image], parts: Sequence[Sequence[Part]]):
        super().__init__(images)
        self.parts = parts


def parts_of(images: Sequence[Image], image: int, block: int) -> list[Part]:
    """Return the parts of a block; none if no attention was read."""
    every = images.parts[image] if isinstance(images, ReadImages) else ()
    return [part for part in every if part.block == block]


class Projection:
    """A projector without linear layers of its own, applied to the visual rows of a pack.

    Args:
        projector: The projector.
        reader: Reader of the tower's attention, if the projector needs it.
    """

    def __init__(self, projector: Projector, reader: AttentionReader | None):
        self.projector, self.reader = projector, reader

    def reduce(
        self,
        tokens: PackedTokens,
        parts: Sequence[Sequence[Part]],
        text_index: np.ndarray,
        width: int,
        context: RoutingContext,
    ) -> PackedTokens:
        """Reduce the visual rows of a pack, none of which has been merged or dropped.

        Rows stand in the order of their first cells. A newline token stays if the lines of its grid
        do: one for each line. Once tokens of an image are dropped or merged otherwise, it is
        dropped, unless the projector chose it like any other token. Tokens that stand for no cell
        are dropped.

        Args:
            tokens: The pack.
            parts: Parts of each span, see `parts_of`.
            text_index: Place of each text row in the flat `[B, width]` ids.
            width: Number of columns of the ids.
            context: Routing context of the samples.
        """
        units = self._units(tokens, parts)
        if not units:
            return tokens
        rows = torch.from_numpy(np.concatenate([_rows(tokens, unit) for unit in units]))
        text = torch.from_numpy(np.flatnonzero(~tokens.is_visual)).to(tokens.hidden.device)
        owners = [tokens.spans[unit.pieces[0][0]].sample for unit in units]
        features = VisualFeatures(
            tokens.hidden.index_select(0, rows.to(tokens.hidden.device)),
            tuple(unit.grid for unit in units),
            context=image_context(tokens.hidden[text], text_index, width, owners, context),
        )
        if self.reader is not None:
            values = torch.cat([unit.values for unit in units if unit.values is not None])
            features = replace(
                features,
                attention=values[:, 0] * self.reader.place.patches,
                keys=values[:, 1:],
                heads=self.reader.place.heads,
            )
        return written_back(tokens, units, self.projector(features))

    def _units(self, tokens: PackedTokens, parts: Sequence[Sequence[Part]]) -> list[Unit]:
        if self.projector.per_image:
            return [_of_image(tokens, image) for image in tokens.images]
        if self.reader is None:
            grids = [_of_grid(i, span) for i, span in enumerate(tokens.spans)]
            return [unit for unit in grids if unit.grid[1]]
        return [
            Unit(((i, part.places),), (1, len(part.places)), part.values)
            for i, own in enumerate(parts)
            for part in own
        ]


def _of_image(tokens: PackedTokens, image: Sequence[int]) -> Unit:
    """Return the unit of all rows of an image, given its spans."""
    pieces = tuple((i, np.arange(tokens.spans[i].rows)) for i in image)
    return Unit(pieces, (1, sum(len(places) for _, places in pieces)))


def _of_grid(index: int, span: Span) -> Unit:
    """Return the unit of a span's grid without its newline tokens."""
    grid = _body(span)
    cells = np.arange(span.rows).reshape(span.grid)[:, : grid[1]]
    return Unit(((index, cells.flatten()),), grid)


def _body(span: Span) -> Grid:
    """Return the grid of a span without its newline tokens."""
    return span.grid[0], span.grid[1] - span.tail


def _rows(tokens: PackedTokens, unit: Unit) -> np.ndarray:
    return np.concatenate([tokens.starts[i] + places for i, places in unit.pieces])


@dataclass
class _Draft:
    """What becomes of a span.

    Attributes:
        span: The span before the reduction, whose rows are its cells.
        start: Its first row.
        source: Row that stands for each cell, in the old rows followed by the reduced tokens; -1
            for none.
        grid: Grid of the rows, newline tokens included; None if they form none.
        tail: 1 if the last column of `grid` holds newline tokens, else 0.
    """

    span: Span
    start: int
    source: np.ndarray
    grid: Grid | None = None
    tail: int = 0

    def keep_lines(self, owner: np.ndarray, after: Grid) -> None:
        """Note that the rows form a grid, if each line of the span became part of one line of it;
        a line keeps one of its newline tokens, which are equal.

        Args:
            owner: Token that stands for each cell but the newline tokens, -1 for none.
            after: Grid of these tokens.
        """
        lines = np.where(owner < 0, -1, owner // after[1]).reshape(_body(self.span))
        if (lines < 0).any() or (lines != lines[:, :1]).any():
            return
        self.tail = self.span.tail
        self.grid = after[0], after[1] + self.tail
        if self.tail:
            newlines = np.arange(self.span.rows).reshape(self.span.grid)[:, -1]
            first = np.unique(lines[:, 0], return_index=True)[1]
            self.source[newlines] = self.start + newlines[first[lines[:, 0]]]

    def keep_newlines(self) -> None:
        """Let all newline tokens stay that are not decided about."""
        missing = self.source < 0
        self.source[missing] = self.start + np.flatnonzero(missing)

    def finish(self) -> tuple[Span, np.ndarray]:
        """Return the span after the reduction, and the source of each of its rows."""
        cells = np.flatnonzero(self.source >= 0)
        rows, first, place = np.unique(self.source[cells], return_index=True, return_inverse=True)
        order = first.argsort()  # rows in the order of their first cells
        if len(rows) == self.span.rows:
            return self.span, rows[order]
        before = replace(self.span, entered=len(rows))
        target = np.full(len(self.source), -1, dtype=np.int64)
        target[cells] = order.argsort()[place]
        if self.grid is None or self.grid[0] * self.grid[1] != len(rows):
            return before.regroup((1, len(rows)), target), rows[order]
        return before.regroup(self.grid, target, self.tail), rows[order]


def written_back(
    tokens: PackedTokens, units: Sequence[Unit], reduced: VisualFeatures
) -> PackedTokens:
    """Return a pack whose visual rows are the tokens that a projector left of its units."""
    old = len(tokens.hidden)
    drafts = [
        _Draft(span, start, np.full(span.rows, -1))
        for span, start in zip(tokens.spans, tokens.starts, strict=True)
    ]
    begins = accumulate((h * w for h, w in reduced.grids), initial=old)
    owners = reduced.owners or [None] * len(units)
    changed = set()
    for unit, grid, owner, begin in zip(units, reduced.grids, owners, begins, strict=False):
        owner = np.arange(grid[0] * grid[1]) if owner is None else owner
        cuts = np.cumsum([len(places) for _, places in unit.pieces])[:-1]
        for (i, places), own in zip(unit.pieces, np.split(owner, cuts), strict=True):
            drafts[i].source[places] = np.where(own >= 0, begin + own, -1)
        first = drafts[unit.pieces[0][0]]
        if len(np.unique(owner[owner >= 0])) < len(owner):
            changed.add(first.span.image)
        if unit.grid == _body(first.span):
            first.keep_lines(owner, grid)
    spans, index, done = [], [], 0
    for draft in drafts:
        if draft.span.image not in changed:
            draft.keep_newlines()
        span, rows = draft.finish()
        spans.append(span)
        index += [np.arange(done, draft.start), rows]
        done = draft.start + draft.span.rows
    index.append(np.arange(done, old))
    every = torch.cat([tokens.hidden, reduced.tokens.to(tokens.hidden.dtype)])
    taken = torch.from_numpy(np.concatenate(index)).to(every.device)
    return replace(tokens, hidden=every.index_select(0, taken), spans=tuple(spans))
