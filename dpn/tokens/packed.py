"""`PackedTokens`: a batch without padding, as it flows through the decoder.

Hidden states are the only tensor that is stored. Row counts, positions, columns and source cells
are derived from the visual spans, which live on the CPU, so they always agree with each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpn.common.errors import SettingError
from dpn.common.marks import marked
from dpn.tokens.grids import (
    Grid,
    Kernel,
    Reduce,
    convolve_grid,
    kernel_on,
    pool_grid,
    pooled_grid,
    window_of_row,
)
from dpn.tokens.spans import CellMap, Span

Positions = Literal["renumber", "keep"]


@dataclass(frozen=True)
class PackedTokens:
    """A batch of text and visual rows, packed without padding.

    Attributes:
        hidden: Hidden states `[N, D]`.
        columns_of: Number of `input_ids` columns of each sample that are not padding.
        left: Number of padding columns to the left of each sample.
        spans: The visual spans, in the order of their rows.
        numbering: Rotary positions of rows after a reduction: `renumber` counts the remaining rows
            from 0, `keep` lets every row keep its initial position (a pooled row: the position of
            its first cell).
        entry: Given positions `[C]`, or `[A, C]` for A rotary axes, of the C columns that are not
            padding, sample after sample, in place of those counted from 0; with `keep` only.
    """

    hidden: Tensor
    columns_of: tuple[int, ...]
    left: tuple[int, ...]
    spans: tuple[Span, ...]
    numbering: Positions = "renumber"
    entry: Tensor | None = None

    # Derived from the spans (on the CPU)

    @cached_property
    def visual_rows(self) -> tuple[int, ...]:
        """Number of visual rows of each sample."""
        rows = [0] * len(self.columns_of)
        for span in self.spans:
            rows[span.sample] += span.rows
        return tuple(rows)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of rows of each sample: the columns of a span stand for all of its rows, every
        other column for one row.
        """
        lengths = list(self.columns_of)
        for span in self.spans:
            lengths[span.sample] += span.rows - span.width
        return tuple(lengths)

    @cached_property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """Places in `spans` of the spans of each image."""
        places = groupby(range(len(self.spans)), key=lambda place: self.spans[place].image)
        return tuple(tuple(same) for _, same in places)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each sample, followed by the number of rows N."""
        return tuple(accumulate(self.lengths, initial=0))

    def row(self, sample: int, column: int) -> int:
        """Return the row that stands for a column of `input_ids`.

        A column of a span is represented by the last remaining visual row of the cells up to it,
        and an `<image>` column by its last remaining visual row; if none remains, by the text row
        before it, or by the sample's first row.
        """
        place = column - self.left[sample]
        for span in self.spans:
            if span.sample == sample and span.column <= column:
                passed = min(column + 1 - span.column, span.width)
                whole = passed == span.width
                rows = span.rows if whole else int((span.first_cells() < passed).sum())
                place += rows - passed
        return self.offsets[sample] + max(place, 0)

    @cached_property
    def _column_of_row(self) -> np.ndarray:
        repeats = np.ones(sum(self.columns_of), dtype=np.int64)
        begins = list(accumulate(self.columns_of, initial=0))
        for span in self.spans:
            first = begins[span.sample] + span.column - self.left[span.sample]
            repeats[first : first + span.width] = 0
            repeats[first] = span.rows
        every = [np.arange(pad, pad + n) for pad, n in zip(self.left, self.columns_of, strict=True)]
        found = np.repeat(np.concatenate(every), repeats) if every else np.empty(0, np.int64)
        for start, span in zip(self.starts, self.spans, strict=True):
            if span.width > 1:
                found[start : start + span.rows] += span.first_cells()
        return found

    @cached_property
    def positions(self) -> Tensor:
        """Rotary positions, `[N]`, or `[A, N]` if `entry` has A axes."""
        if self.numbering == "renumber":
            position = np.concatenate([np.arange(n) for n in self.lengths])
            return torch.from_numpy(position).to(self.hidden.device, non_blocking=True)
        position = self._column_of_row - np.repeat(self.left, self.lengths)
        if self.entry is not None:
            begins = accumulate(self.columns_of[:-1], initial=0)
            index = torch.from_numpy(position + np.repeat(list(begins), self.lengths))
            return self.entry.index_select(-1, index.to(self.entry.device, non_blocking=True))
        # Every column after an image is shifted by the cells of the image.
        for start, span in zip(self.starts, self.spans, strict=True):
            rows, last = slice(start, start + span.rows), self.offsets[span.sample + 1]
            position[rows.stop : last] += span.cells - span.width
            if span.width == 1:
                position[rows] += span.first_cells()
        return torch.from_numpy(position).to(self.hidden.device, non_blocking=True)

    @cached_property
    def columns(self) -> Tensor:
        """Column of `input_ids` that each row belongs to, `[N]`."""
        return torch.from_numpy(self._column_of_row).to(self.hidden.device, non_blocking=True)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """First row of each sample, followed by N, int32 `[B + 1]`."""
        return torch.tensor(self.offsets, dtype=torch.int32).to(
            self.hidden.device, non_blocking=True
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each span."""
        starts, shift = [], [o - pad for o, pad in zip(self.offsets, self.left, strict=False)]
        for span in self.spans:
            starts.append(shift[span.sample] + span.column)
            shift[span.sample] += span.rows - span.width
        return tuple(starts)

    @property
    def visual(self) -> Tensor:
        """Hidden states of the visual rows, `[Nv, D]`."""
        return torch.cat([self.hidden[:0], *self._pieces()[1::2]])

    @cached_property
    def is_visual(self) -> np.ndarray:
        """Mask of the visual rows, bool `[N]` on the CPU."""
        mark = np.zeros(self.offsets[-1], dtype=bool)
        for start, span in zip(self.starts, self.spans, strict=True):
            mark[start : start + span.rows] = True
        return mark

    def rows_of_columns(self, samples: np.ndarray, columns: np.ndarray) -> Tensor:
        """Return the rows of many columns at once, see `row`.

        Args:
            samples: Sample of each column, `[R]`.
            columns: Columns of `input_ids`, `[R]`, none of them padding.

        Returns:
            Row of each column, `[R]`, on the device of `hidden`.
        """
        width = max(n + pad for n, pad in zip(self.columns_of, self.left, strict=True))
        sample_of_row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        keys = sample_of_row * width + self._column_of_row
        rows = np.searchsorted(keys, samples * width + columns, side="right") - 1
        rows = np.maximum(rows, np.array(self.offsets)[samples])
        return torch.from_numpy(rows).to(self.hidden.device, non_blocking=True)

    # Operations on the rows

    @cached_property
    def piece_sizes(self) -> list[int]:
        """Number of rows of each piece in the order text, span, text, span, ..., text."""
        sizes, done = [], 0
        for span, begin in zip(self.spans, self.starts, strict=True):
            sizes += [begin - done, span.rows]
            done = begin + span.rows
        return [*sizes, self.offsets[-1] - done]

    def _pieces(self) -> tuple[Tensor, ...]:
        # One split and one cat: their backward passes are one cat and one split, whereas each slice
        # would allocate a gradient of the whole pack.
        return self.hidden.split(self.piece_sizes)

    def _with_visual(
        self, pieces: Sequence[Tensor], visual: Sequence[Tensor], spans: Iterable[Span]
    ):
        mixed = list(pieces)
        mixed[1::2] = visual
        return replace(self, hidden=torch.cat(mixed), spans=tuple(spans))

    def with_hidden(self, hidden: Tensor) -> "PackedTokens":
        """Replace the hidden states `[N, D]` of all rows, keeping the cached properties."""
        new = object.__new__(PackedTokens)
        vars(new).update(vars(self), hidden=hidden)
        return new

    @marked("pooling")
    def pool(
        self,
        kernels: Sequence[Kernel],
        reduce: Reduce = "max",
        weights: Sequence[Tensor | None] | None = None,
        scale: Tensor | None = None,
    ) -> "PackedTokens":
        """Pool the visual rows of every span; spans that share grid and kernel are pooled in one
        call.

        Args:
            kernels: Kernel (= stride) of each span, see `kernel_on`; (1, 1) does not pool.
            reduce: `max` or `avg`.
            weights: Depthwise convolution weights `[D, 1, kh, kw]` of each span, used in place of
                `reduce`.
            scale: Factor of each span's rows, `[spans]`; applied without pooling, too.
        """
        groups: dict[tuple, list[int]] = {}
        weights = weights or [None] * len(self.spans)
        for i, (span, kernel, weight) in enumerate(zip(self.spans, kernels, weights, strict=True)):
            key = (span.grid, span.tail, kernel_on(span.grid, kernel), id(weight))
            groups.setdefault(key, []).append(i)
        pieces = self._pieces()
        visual = list(pieces[1::2])
        spans = list(self.spans)
        for (grid, tail, kernel, _), members in groups.items():
            weight = weights[members[0]]
            if grid[0] * grid[1] == 0 or (kernel == (1, 1) and scale is None and weight is None):
                continue
            rows = torch.stack([visual[i] for i in members]).unflatten(1, grid)  # [S, h, w, D]
            if weight is not None:
                rows = convolve_grid(rows, weight.reshape(-1, 1, *kernel))
            elif kernel != (1, 1):
                rows = pool_grid(rows, kernel, reduce, tail)
            if scale is not None:
                rows = rows * scale[members].to(rows.dtype)[:, None, None, None]
            for i, pooled in zip(members, rows.flatten(1, 2).unbind(), strict=True):
                visual[i] = pooled
                after, window = pooled_grid(grid, kernel, tail), window_of_row(grid, kernel, tail)
                spans[i] = spans[i].regroup(after, window, tail)
        return self._with_visual(pieces, visual, spans)

    @marked("pooling")
    def merge(self, targets: Sequence[np.ndarray]) -> "PackedTokens":
        """Average groups of visual rows: row i of a span becomes part of the span's new row
        `targets[span][i]`; -1 drops it.

        New rows are numbered 0..n-1 in their order in the pack. The span's grid becomes 1 x n,
        unless every row stays as it is.
        """
        pieces = self._pieces()
        visual, spans = [], []
        for span, rows, target in zip(self.spans, pieces[1::2], targets, strict=True):
            if np.array_equal(target, np.arange(span.rows)):
                visual.append(rows)
                spans.append(span)
                continue
            kept = np.flatnonzero(target >= 0)
            count = int(target.max(initial=-1)) + 1
            if set(target[kept].tolist()) != set(range(count)):
                raise ValueError(
                    f"targets of image {span.image} must number the new rows 0..{count - 1}"
                    " without a gap."
                )
            index = torch.from_numpy(target[kept]).to(rows.device)
            share = torch.bincount(index, minlength=count).reciprocal().to(rows.dtype)
            taken = rows[torch.from_numpy(kept).to(rows.device)] * share[index, None]
            visual.append(rows.new_zeros(count, rows.shape[1]).index_add(0, index, taken))
            spans.append(span.regroup((1, count), target))
        return self._with_visual(pieces, visual, spans)

    @marked("pooling")
    def keep(self, rows: Sequence[np.ndarray]) -> "PackedTokens":
        """Keep some visual rows and drop the others.

        Args:
            rows: Ascending places of the rows to keep within each span; an empty array drops all
                rows of the span.
        """
        spans = []
        for span, places in zip(self.spans, rows, strict=True):
            target = np.full(span.rows, -1, dtype=np.int64)
            target[places] = np.arange(len(places))
            whole = len(places) == span.rows
            spans.append(span if whole else span.regroup((1, len(places)), target))
        hidden = self.hidden.index_select(0, self._index_of(rows))
        return replace(self, hidden=hidden, spans=tuple(spans))

    @marked("pooling")
    def put(self, rows: Sequence[np.ndarray], hidden: Tensor) -> "PackedTokens":
        """Replace the hidden states of the rows that `keep(rows)` would keep; leave the others
        unchanged.
        """
        old = self.hidden.to(hidden.dtype)
        return self.with_hidden(old.index_copy(0, self._index_of(rows), hidden))

    def _index_of(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return the indices of the rows that `keep(rows)` keeps."""
        stays = np.ones(self.offsets[-1], dtype=bool)
        for span, start, places in zip(self.spans, self.starts, rows, strict=True):
            stays[start : start + span.rows] = False
            stays[start + places] = True
        return torch.from_numpy(np.flatnonzero(stays)).to(self.hidden.device, non_blocking=True)

    def restart(self) -> "PackedTokens":
        """Treat the remaining rows as the ones that entered the decoder: number positions from them
        and forget the vision tower's cells. With several columns to a span, or given positions,
        rows keep their cells and positions.
        """
        if self.entry is not None or any(span.width > 1 for span in self.spans):
            spans = [replace(span, entered=span.rows) for span in self.spans]
        else:
            spans = [Span.start(s.sample, s.image, s.column, s.grid) for s in self.spans]
        return replace(self, spans=tuple(spans))

    def drop(self) -> "PackedTokens":
        """Drop every visual row."""
        return self.keep([np.empty(0, dtype=np.int64)] * len(self.spans))


def pack(
    text: Tensor,
    attention_mask: np.ndarray,
    image_columns: Sequence[tuple[int, int]],
    visual: Sequence[Tensor],
    grids: Sequence[Grid],
    numbering: Positions = "renumber",
    sources: Sequence[CellMap | None] | None = None,
) -> PackedTokens:
    """Pack text embeddings and visual tokens into one batch without padding.

    Args:
        text: Embeddings `[n, D]` of all columns of `input_ids` that are neither padding nor
            `<image>`, sample after sample.
        attention_mask: Bool `[B, T]`, False for padding, which may be left or right of a sample.
        image_columns: (sample, column) of every image, ascending.
        visual: Visual tokens `[h * w, D]` of every image.
        grids: Height and width of every image's visual tokens.
        numbering: Rotary positions after a reduction, see `PackedTokens`.
        sources: Cell map of every image, see `Span.start`.

    Raises:
        SettingError: If a sample is empty or has padding in its middle.
    """
    columns_of, left = edges(attention_mask)
    # Text rows before each image: columns before it that are neither padding nor `<image>`.
    seen = attention_mask.cumsum().reshape(attention_mask.shape)
    before = [int(seen[b, c]) - 1 - i for i, (b, c) in enumerate(image_columns)]
    runs = text.split(np.diff([0, *before, len(text)]).tolist())
    mixed = [runs[0]]
    for rows, run in zip(visual, runs[1:], strict=True):
        mixed += [rows, run]
    sources = sources or [None] * len(grids)
    spans = tuple(
        Span.start(sample, image, column, grid, source)
        for image, ((sample, column), grid, source) in enumerate(
            zip(image_columns, grids, sources, strict=True)
        )
    )
    return PackedTokens(
        hidden=torch.cat(mixed) if visual else text,
        columns_of=columns_of,
        left=left,
        spans=spans,
        numbering=numbering,
    )


def edges(attention_mask: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the number of columns of each sample that are not padding, and of those left of them.

    Args:
        attention_mask: Bool `[B, T]`, False for padding.

    Raises:
        SettingError: If a sample is empty or has padding in its middle.
    """
    columns_of = tuple(attention_mask.sum(1).tolist())
    left = tuple(attention_mask.argmax(1).tolist())
    right = attention_mask[:, ::-1].argmax(1)
    runs_of = attention_mask.shape[1] - right - left
    if (broken := (runs_of != columns_of) | (np.array(columns_of) == 0)).any():
        raise SettingError(
            f"attention_mask of sample {broken.argmax()} must be one run of ones with padding left"
            " or right of it."
        )
    return columns_of, left
