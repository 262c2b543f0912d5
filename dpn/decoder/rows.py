"""Indices of the text and visual rows of a pack, and masks of the rows that each attends to."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dpn.decoder.attention import PrefillAttention
from dpn.tokens import BLOCK, Grid, PackedTokens, Span


@dataclass(frozen=True)
class PlannedRows:
    """Indices and masks of a pack's text and visual rows, shared by all layers with the same rows.

    Attributes:
        tokens: The pack.
        attention: Attention over the pack, which also fills the cache.
    """

    tokens: PackedTokens
    attention: PrefillAttention

    def apart(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Split `[N, ...]` into text rows and visual rows."""
        # A split and a cat, not an index: their backward passes are a cat and a split.
        pieces = values.split(self.tokens.piece_sizes)
        return torch.cat(pieces[::2]), torch.cat(pieces[1::2])

    def together(self, text: Tensor, visual: Tensor) -> Tensor:
        """Join text rows and visual rows; the inverse of `apart`."""
        sizes = self.tokens.piece_sizes
        mixed: list[Any] = [None] * len(sizes)
        mixed[::2], mixed[1::2] = text.split(sizes[::2]), visual.split(sizes[1::2])
        return torch.cat(mixed)

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.tokens.hidden.device, non_blocking=True)

    def queries(self, visual: bool) -> "Queries":
        """Return the text or visual rows as queries that attend to all rows before them."""
        return self._visual_queries if visual else self._text_queries

    @cached_property
    def _text_queries(self) -> "Queries":
        return self._queries(~self.tokens.is_visual)

    @cached_property
    def _visual_queries(self) -> "Queries":
        return self._queries(self.tokens.is_visual)

    def _queries(self, wanted: np.ndarray) -> "Queries":
        """Return the wanted rows as a padded batch, with the mask of the keys they attend to."""
        offsets, longest = np.asarray(self.tokens.offsets), max(self.tokens.lengths)
        own = [np.flatnonzero(wanted[a:b]) for a, b in pairwise(offsets)]
        counts = np.array([len(rows) for rows in own])
        steps = np.arange(counts.max())
        place = np.zeros((len(own), len(steps)), dtype=np.int64)  # place in the sample
        for row, rows in zip(place, own, strict=True):
            row[: len(rows)] = rows
        filled = steps < counts[:, None]
        take = np.where(filled, (counts.cumsum() - counts)[:, None] + steps, 0)
        keys = np.minimum(offsets[:-1, None] + np.arange(longest), offsets[1:, None] - 1)
        # Padded queries attend to the first row: a row without any key would give NaN.
        sees = (np.arange(longest) <= place[:, :, None])[:, None]
        return Queries(*map(self._on_device, (take, keys, sees, np.flatnonzero(filled))))

    def neighbourhoods(self, radius: int | None, window: int | None) -> list["Neighbourhood"]:
        """Return what visual rows attend to under `LayerPlan.radius` and `LayerPlan.window`, as few
        batches of equal shape.
        """
        if (radius, window) not in self._near:
            shown = [
                s for s in zip(self.tokens.starts, self.tokens.spans, strict=True) if s[1].rows
            ]
            shown.sort(key=lambda s: s[1].grid)
            self._near[radius, window] = [
                self._neighbourhood(spans, blocks)
                for grid, same in groupby(shown, key=lambda s: s[1].grid)
                for spans in [list(same)]
                for blocks in blocks_of(grid, radius, window)
            ]
        return self._near[radius, window]

    @cached_property
    def _near(self) -> dict[tuple[int | None, int | None], list["Neighbourhood"]]:
        return {}

    def _neighbourhood(self, spans: list[tuple[int, Span]], blocks: "Blocks") -> "Neighbourhood":
        offsets, is_visual = self.tokens.offsets, self.tokens.is_visual
        before = [
            offsets[span.sample] + np.flatnonzero(~is_visual[offsets[span.sample] : start])
            for start, span in spans
        ]
        most = max(map(len, before))
        count, queries = blocks.take.shape
        place = is_visual.cumsum() - 1
        take = np.stack([place[start + blocks.take] for start, _ in spans])  # [S, b, q]
        keys = np.zeros((len(spans), count, most + blocks.keys.shape[1]), dtype=np.int64)
        sees = np.zeros((len(spans), count, queries, keys.shape[2]), dtype=bool)
        for i, ((start, _), text) in enumerate(zip(spans, before, strict=True)):
            keys[i, :, : len(text)] = text
            keys[i, :, most:] = start + blocks.keys
            sees[i, :, :, : len(text)] = True
            sees[i, :, :, most:] = blocks.sees
        shape = (len(spans) * count, -1)
        parts = (take.reshape(shape), keys.reshape(shape), sees.reshape(shape[0], 1, queries, -1))
        return Neighbourhood(*map(self._on_device, parts))


class Blocks(NamedTuple):
    """Blocks of one image's rows as queries, and the rows of the image that they attend to.

    Attributes:
        take: Query rows, `[b, q]`.
        keys: Key rows, `[b, k]`.
        sees: Attention mask, bool `[b, q, k]`.
    """

    take: np.ndarray
    keys: np.ndarray
    sees: np.ndarray


def blocks_of(grid: Grid, radius: int | None, window: int | None) -> list[Blocks]:
    """Divide the rows of an image into blocks of equal shape; `pairs_within` and `pairs_in_window`
    count their scores.
    """
    if radius is None:
        assert window is not None
        return blocks_in_window(grid[0] * grid[1], window)
    blocks = lines_within(grid, radius)
    if window is None:
        return [blocks]
    return [blocks._replace(sees=blocks.sees & _in_window(blocks.take, blocks.keys, window))]


def lines_within(grid: Grid, radius: int) -> Blocks:
    """Return each line of a grid with the lines around it as keys, the same number for all."""
    height, width = grid
    places = np.arange(height * width).reshape(height, width)
    count, line = min(height, 2 * radius + 1), np.arange(height)[:, None]
    lines = np.clip(line - radius, 0, height - count) + np.arange(count)  # [h, lines]
    inside = np.repeat(np.abs(lines - line) <= radius, width, axis=1)
    columns = np.tile(np.arange(width), count)
    near = np.abs(columns - np.arange(width)[:, None]) <= radius  # [w, lines * w]
    return Blocks(places, places[lines].reshape(height, -1), inside[:, None] & near)


def blocks_in_window(rows: int, window: int) -> list[Blocks]:
    """Return full blocks of rows with the rows of their window as keys, then the last, smaller
    block.
    """
    found = []
    for size, firsts in ((BLOCK, range(0, rows - BLOCK + 1, BLOCK)), (rows % BLOCK, [-1])):
        first = np.array([rows - size if f < 0 else f for f in firsts])[:, None]
        if not first.size or not size:
            continue
        take = first + np.arange(size)
        begin = np.minimum(np.maximum(first - window, 0), rows - min(rows, window + size))
        keys = begin + np.arange(min(rows, window + size))
        found.append(Blocks(take, keys, _in_window(take, keys, window)))
    return found


def _in_window(take: np.ndarray, keys: np.ndarray, window: int) -> np.ndarray:
    steps = take[:, :, None] - keys[:, None]
    return (steps >= 0) & (steps <= window)


@dataclass(frozen=True)
class Queries:
    """A padded batch of query rows.

    Attributes:
        take: Indices of the queries among the text (or visual) rows, `[b, q]`.
        keys: Rows of their keys, `[b, k]`.
        sees: Attention mask, bool `[b, 1, q, k]`.
        filled: Indices into the flat `[b * q]` that are not padding, in the order of the rows.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor
    filled: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """Blocks of visual rows of images with the same grid, and the rows that they attend to.

    Attributes:
        take: Indices of the queries among the visual rows, `[S * b, q]`.
        keys: Rows of their keys, `[S * b, k]`: text before the image, then rows of the image.
        sees: Attention mask, bool `[S * b, 1, q, k]`.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor
