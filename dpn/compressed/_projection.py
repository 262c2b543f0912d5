"""Projectors that need no training, on the visual tokens of a stock model before layer 0."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpn.compressed._tower import AttentionReader
from dpn.families import Family, Image, Part
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


class Projection:
    """A projector without linear layers of its own, applied to the visual rows of a pack.

    Args:
        projector: The projector.
        reader: Reader of the tower's attention, if the projector needs it.
    """

    def __init__(self, projector: Projector, reader: AttentionReader | None):
        self.projector, self.reader = projector, reader
        self._parts: dict[str, list[list[Part]]] = {}

    @contextmanager
    def reading(self) -> Iterator[list[Tensor]]:
        """Collect features of patches while the vision tower runs, see `AttentionReader`."""
        with nullcontext([]) if self.reader is None else self.reader.reading() as found:
            yield found

    def note(
        self,
        family: Family,
        inner: Any,
        kind: str,
        arguments: Mapping[str, Any],
        images: Sequence[Image],
        patches: Sequence[Tensor],
    ) -> None:
        """Note the features that the tower computed for images or videos, see `Family.parts`."""
        if self.reader is not None:
            self._parts[kind] = family.parts(inner, kind, arguments, images, patches)

    def reduce(
        self,
        tokens: PackedTokens,
        blocks: Sequence[tuple[str, int, int]],
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
            blocks: Encoded block of each span, see `encoded_blocks`.
            text_index: Place of each text row in the flat `[B, width]` ids.
            width: Number of columns of the ids.
            context: Routing context of the samples.
        """
        units = self._units(tokens, blocks)
        if not units:
            return tokens
        index = torch.from_numpy(np.concatenate([_rows(tokens, unit) for unit in units]))
        text = torch.from_numpy(np.flatnonzero(~tokens.is_visual)).to(tokens.hidden.device)
        owners = [tokens.spans[unit.pieces[0][0]].sample for unit in units]
        read = {}
        if self.reader is not None:
            values = torch.cat([unit.values for unit in units if unit.values is not None])
            read = {"attention": values[:, 0], "keys": values[:, 1:].contiguous()}
            read["heads"] = self.reader.place.heads
        features = VisualFeatures(
            tokens.hidden.index_select(0, index.to(tokens.hidden.device)),
            tuple(unit.grid for unit in units),
            context=image_context(tokens.hidden[text], text_index, width, owners, context),
            **read,
        )
        return written_back(tokens, units, self.projector(features))

    def _units(self, tokens: PackedTokens, blocks: Sequence[tuple[str, int, int]]) -> list[Unit]:
        if self.projector.per_image:
            sizes = [[tokens.spans[i].rows for i in image] for image in tokens.images]
            return [
                Unit(tuple((i, np.arange(n)) for i, n in zip(image, own, strict=True)), (1, sum(own)))
                for image, own in zip(tokens.images, sizes, strict=True)
            ]
        if self.reader is None:
            return [_of_grid(i, span) for i, span in enumerate(tokens.spans)]
        return [
            Unit(((i, part.places),), (1, len(part.places)), part.values)
            for i, (kind, image, block) in enumerate(blocks)
            for part in self._parts[kind][image]
            if part.block == block
        ]


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


def written_back(
    tokens: PackedTokens, units: Sequence[Unit], reduced: VisualFeatures
) -> PackedTokens:
    """Return a pack whose visual rows are the tokens that a projector left of its units."""
    old, spans = len(tokens.hidden), tokens.spans
    # Row that stands for each cell, in the old rows followed by the reduced tokens; -1 for none.
    source = [np.full(span.rows, -1) for span in spans]
    grids: dict[int, tuple[Grid, int]] = {}
    changed = set()
    begins = accumulate((h * w for h, w in reduced.grids), initial=old)
    owners = reduced.owners or [None] * len(units)
    for unit, grid, owner, begin in zip(units, reduced.grids, owners, begins, strict=False):
        owner = np.arange(grid[0] * grid[1]) if owner is None else owner
        cuts = np.cumsum([len(places) for _, places in unit.pieces])[:-1]
        for (i, places), own in zip(unit.pieces, np.split(owner, cuts), strict=True):
            source[i][places] = np.where(own >= 0, begin + own, -1)
        if len(np.unique(owner[owner >= 0])) < len(owner):
            changed.add(spans[unit.pieces[0][0]].image)
        i = unit.pieces[0][0]
        lines = _lines(owner, unit.grid, grid)
        if lines is not None and unit.grid == _body(spans[i]):
            grids[i] = grid, _keep_newlines(source[i], tokens.starts[i], spans[i], lines)
    found, index, done = [], [], 0
    for i, (span, start) in enumerate(zip(spans, tokens.starts, strict=True)):
        if span.image not in changed:
            missing = source[i] < 0  # newline tokens of an image that stays whole
            source[i][missing] = start + np.flatnonzero(missing)
        grid, tail = grids.get(i, ((1, 0), 0))
        after, rows = _regrouped(span, source[i], (grid[0], grid[1] + tail), tail)
        found.append(after)
        index += [np.arange(done, start), rows]
        done = start + span.rows
    index.append(np.arange(done, old))
    every = torch.cat([tokens.hidden, reduced.tokens.to(tokens.hidden.dtype)])
    rows = torch.from_numpy(np.concatenate(index)).to(every.device)
    return replace(tokens, hidden=every.index_select(0, rows), spans=tuple(found))


def _lines(owner: np.ndarray, grid: Grid, after: Grid) -> np.ndarray | None:
    """Return the line of a reduced grid that each line of a grid became; None if lines were mixed
    or tokens dropped.
    """
    lines = np.where(owner < 0, -1, owner // after[1]).reshape(grid)
    whole = (lines >= 0).all() and (lines == lines[:, :1]).all()
    return lines[:, 0] if whole else None


def _keep_newlines(source: np.ndarray, start: int, span: Span, lines: np.ndarray) -> int:
    """Let the first newline token of each line of a reduced grid stay; all of them are equal.

    Returns:
        Number of newline tokens in a line.
    """
    if span.tail:
        cells = np.arange(span.rows).reshape(span.grid)[:, -1]
        first = np.unique(lines, return_index=True)[1]
        source[cells] = start + cells[first[lines]]
    return span.tail


def _regrouped(span: Span, source: np.ndarray, grid: Grid, tail: int) -> tuple[Span, np.ndarray]:
    """Return a span after a reduction, and its rows.

    Args:
        span: The span before, whose rows are its cells.
        source: Row that stands for each cell, -1 for none.
        grid: Grid of the rows; 1 x n if they form another number of rows.
        tail: 1 if the last column of `grid` holds newline tokens.
    """
    cells = np.flatnonzero(source >= 0)
    rows, first, place = np.unique(source[cells], return_index=True, return_inverse=True)
    order = first.argsort()
    target = np.full(len(source), -1, dtype=np.int64)
    target[cells] = order.argsort()[place]
    if len(rows) == span.rows:
        return span, rows[order]
    if grid[0] * grid[1] != len(rows):
        grid, tail = (1, len(rows)), 0
    return span.regroup(grid, target, tail), rows[order]
