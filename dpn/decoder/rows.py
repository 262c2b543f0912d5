"""Where text and visual rows of a pack are, and what each may see."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpn.decoder.attention import PrefillAttention
from dpn.tokens import PackedTokens, Span


@dataclass(frozen=True)
class PlannedRows:
    """Where text and visual rows of a pack are; shared by all layers that see the same rows.

    Attributes:
        tokens: the pack.
        attention: writes the cache.
    """

    tokens: PackedTokens
    attention: PrefillAttention

    def apart(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Text rows and visual rows of `[N, ...]`."""
        # A split and a cat, not an index, for their backward passes are a cat and a split.
        pieces = values.split(self.tokens.piece_sizes)
        return torch.cat(pieces[::2]), torch.cat(pieces[1::2])

    def together(self, text: Tensor, visual: Tensor) -> Tensor:
        """The inverse of `apart`."""
        sizes = self.tokens.piece_sizes
        mixed: list[Any] = [None] * len(sizes)
        mixed[::2], mixed[1::2] = text.split(sizes[::2]), visual.split(sizes[1::2])
        return torch.cat(mixed)

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.tokens.hidden.device, non_blocking=True)

    def queries(self, visual: bool) -> "Queries":
        """Text rows or visual rows that attend to all rows before them."""
        return self._visual_queries if visual else self._text_queries

    @cached_property
    def _text_queries(self) -> "Queries":
        return self._queries(~self.tokens.is_visual)

    @cached_property
    def _visual_queries(self) -> "Queries":
        return self._queries(self.tokens.is_visual)

    def _queries(self, wanted: np.ndarray) -> "Queries":
        """Padded places of the wanted rows, and what they see."""
        offsets, longest = np.asarray(self.tokens.offsets), max(self.tokens.lengths)
        own = [np.flatnonzero(wanted[a:b]) for a, b in pairwise(offsets)]
        counts = np.array([len(rows) for rows in own])
        steps = np.arange(counts.max())
        place = np.zeros((len(own), len(steps)), dtype=np.int64)  # row in its sample
        for row, rows in zip(place, own, strict=True):
            row[: len(rows)] = rows
        filled = steps < counts[:, None]
        take = np.where(filled, (counts.cumsum() - counts)[:, None] + steps, 0)
        keys = np.minimum(offsets[:-1, None] + np.arange(longest), offsets[1:, None] - 1)
        sees = (np.arange(longest) <= place[:, :, None])[:, None]  # padding sees the first row
        return Queries(*map(self._on_device, (take, keys, sees, np.flatnonzero(filled))))

    def neighbourhoods(self, radius: int) -> list["Neighbourhood"]:
        """One for each grid size among the spans."""
        if radius not in self._near:
            self._near[radius] = self._neighbourhoods(radius)
        return self._near[radius]

    @cached_property
    def _near(self) -> dict[int, list["Neighbourhood"]]:
        return {}

    def _neighbourhoods(self, radius: int) -> list["Neighbourhood"]:
        spans = sorted(
            (s for s in zip(self.tokens.starts, self.tokens.spans, strict=True) if s[1].rows),
            key=lambda s: s[1].grid,
        )
        return [
            self._neighbourhood(list(same), radius)
            for _, same in groupby(spans, key=lambda s: s[1].grid)
        ]

    def _neighbourhood(self, spans: list[tuple[int, Span]], radius: int) -> "Neighbourhood":
        height, width = spans[0][1].grid
        first = [self.tokens.offsets[span.sample] for _, span in spans]
        before = [
            a + np.flatnonzero(~self.tokens.is_visual[a:start])
            for a, (start, _) in zip(first, spans, strict=True)
        ]
        most = max(map(len, before))
        grid = np.arange(height * width).reshape(height, width)
        # The same number of lines of the grid for each line, see `pairs_within`.
        count, line = min(height, 2 * radius + 1), np.arange(height)[:, None]
        lines = np.clip(line - radius, 0, height - count) + np.arange(count)  # [h, lines]
        local = grid[lines].reshape(height, -1)  # [h, lines * w]
        inside = np.repeat(np.abs(lines - line) <= radius, width, axis=1)
        columns = np.tile(np.arange(width), count)
        near = np.abs(columns - np.arange(width)[:, None]) <= radius  # [w, lines * w]
        near_all = inside[:, None] & near  # [h, w, lines * w]
        place = self.tokens.is_visual.cumsum() - 1
        take = np.stack([place[start + grid] for start, _ in spans])  # [S, h, w]
        keys = np.zeros((len(spans), height, most + local.shape[1]), dtype=np.int64)
        sees = np.zeros((len(spans), height, width, keys.shape[2]), dtype=bool)
        for i, ((start, _), text) in enumerate(zip(spans, before, strict=True)):
            keys[i, :, : len(text)] = text
            keys[i, :, most:] = start + local
            sees[i, :, :, : len(text)] = True
            sees[i, :, :, most:] = near_all
        shape = (len(spans) * height, -1)
        parts = (take.reshape(shape), keys.reshape(shape), sees.reshape(shape[0], 1, width, -1))
        return Neighbourhood(*map(self._on_device, parts))


@dataclass(frozen=True)
class Queries:
    """A padded batch of query rows.

    Attributes:
        take: `[b, q]` queries, counted among the wanted rows.
        keys: `[b, k]` rows of their keys.
        sees: bool `[b, 1, q, k]`.
        filled: places of the flat `[b * q]` that are no padding, in the order of the rows.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor
    filled: Tensor


@dataclass(frozen=True)
class Neighbourhood:
    """Visual rows, one line of a grid after the other, and what they see.

    Attributes:
        take: `[S * h, w]` queries, counted among the visual rows.
        keys: `[S * h, k]` rows of their keys: text before the image, then the lines around.
        sees: bool `[S * h, 1, w, k]`.
    """

    take: Tensor
    keys: Tensor
    sees: Tensor
