"""PackedTokens: derived quantities after every operation, in hand-made and random examples."""

import copy
import random

import numpy as np
import pytest
import torch

from dpn.tokens import PackedTokens, Span, pack, pool_grid
from tests.core import naive_rows


def make(numbering="renumber"):
    """Return three samples: text, 2x3 image, text; padding, text, 2x2 image; text."""
    mask = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=bool)
    text = torch.tensor([[100.0], [102.0], [110.0], [120.0]])
    visual = [torch.arange(6.0)[:, None], torch.arange(10.0, 14.0)[:, None]]
    return pack(text, mask, [(0, 1), (1, 2)], visual, [(2, 3), (2, 2)], numbering)


def rows(tokens):
    return tokens.hidden[:, 0].tolist()


def test_pack():
    t = make()
    assert rows(t) == [100, 0, 1, 2, 3, 4, 5, 102, 110, 10, 11, 12, 13, 120]
    assert t.lengths == (8, 5, 1)
    assert t.visual_rows == (6, 4, 0)
    assert t.cu_seqlens.tolist() == [0, 8, 13, 14]
    assert t.positions.tolist() == [*range(8), *range(5), 0]
    assert t.columns.tolist() == [0, 1, 1, 1, 1, 1, 1, 2, 1, 2, 2, 2, 2, 0]
    assert [t.row(0, 0), t.row(0, 1), t.row(0, 2), t.row(1, 2), t.row(2, 0)] == [0, 6, 7, 12, 13]


def test_pool_with_smaller_windows_at_the_edge():
    t = make().pool([(2, 2), (1, 2)])
    assert rows(t) == [100, 4, 5, 102, 110, 11, 13, 120]
    assert [s.grid for s in t.spans] == [(1, 2), (2, 1)]
    assert t.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert t.columns.tolist() == [0, 1, 1, 2, 1, 2, 2, 0]
    assert t.spans[0].owner.tolist() == [0, 0, 1, 0, 0, 1]
    again = t.pool([(1, 2), (1, 1)])
    assert rows(again) == [100, 5, 102, 110, 11, 13, 120]
    assert again.spans[0].owner.tolist() == [0] * 6


@pytest.mark.parametrize("weight", [None, torch.full((1, 1, 2, 2), 0.25)])
def test_a_kernel_on_one_line_pools_as_many_rows_as_it_has_cells(weight):
    line = make().keep([np.arange(1, 6), np.arange(2)])
    assert line.spans[0].grid == (1, 5)
    pooled = line.pool([(2, 2), (1, 1)], "avg", [weight, None])
    assert rows(pooled) == [100, 2.5, 5, 102, 110, 10, 11, 120]
    assert pooled.spans[0].owner.tolist() == [-1, 0, 0, 0, 0, 1]


def test_kept_positions_are_those_of_the_first_cell():
    t = make("keep").pool([(1, 2), (2, 2)])
    assert rows(t) == [100, 1, 2, 4, 5, 102, 110, 13, 120]
    assert t.positions.tolist() == [0, 1, 3, 4, 6, 7, 0, 1, 0]
    assert t.pool([(2, 1), (1, 1)]).positions.tolist() == [0, 1, 3, 7, 0, 1, 0]


def test_average_and_scale():
    t = make().pool([(2, 2), (1, 1)], reduce="avg", scale=torch.tensor([2.0, 0.5]))
    assert rows(t) == [100, 4, 7, 102, 110, 5, 5.5, 6, 6.5, 120]


def test_keep_merge_drop():
    t = make("keep")
    kept = t.keep([np.array([1, 4]), np.array([3])])
    assert rows(kept) == [100, 1, 4, 102, 110, 13, 120]
    assert kept.spans[0].grid == (1, 2)
    assert kept.spans[0].owner.tolist() == [-1, 0, -1, -1, 1, -1]
    assert kept.positions.tolist() == [0, 2, 5, 7, 0, 4, 0]
    merged = t.merge([np.array([0, 0, -1, 1, 1, 1]), np.array([0, 0, 0, 0])])
    assert rows(merged) == [100, 0.5, 4, 102, 110, 11.5, 120]
    with pytest.raises(ValueError, match="without a gap"):
        t.merge([np.array([0, 0, -1, 2, 2, 2]), np.array([0, 0, 0, 0])])


def test_a_dropped_image_is_represented_by_the_text_before_it():
    t = make().drop()
    assert rows(t) == [100, 102, 110, 120]
    assert t.lengths == (2, 1, 1)
    assert [t.row(0, 1), t.row(0, 2), t.row(1, 2)] == [0, 1, 2]
    assert t.rows_of_columns(np.array([0, 0, 1]), np.array([1, 2, 2])).tolist() == [0, 1, 2]
    assert t.pool([(2, 2), (2, 2)]).lengths == (2, 1, 1)


def test_rows_of_columns_equals_row_for_each_column():
    for t in (
        make(),
        make().pool([(2, 2), (1, 2)]),
        make().keep([np.array([5]), np.array([], int)]),
    ):
        places = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0)]
        many = t.rows_of_columns(*map(np.array, zip(*places, strict=True)))
        assert many.tolist() == [t.row(*p) for p in places]


@pytest.mark.parametrize("reduce", ["max", "avg"])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 2), (3, 2), (5, 7)])
def test_pool_grid_equals_windows_by_hand(reduce, kernel):
    x = torch.randn(2, 5, 7, 3)
    out = pool_grid(x, kernel, reduce)
    for i, top in enumerate(range(0, 5, kernel[0])):
        for j, left in enumerate(range(0, 7, kernel[1])):
            window = x[:, top : top + kernel[0], left : left + kernel[1]].flatten(1, 2)
            expected = window.amax(1) if reduce == "max" else window.mean(1)
            torch.testing.assert_close(out[:, i, j], expected)


def test_samples_that_share_grid_and_kernel_are_pooled_in_one_call(monkeypatch):
    calls = []
    import dpn.tokens.packed as module

    monkeypatch.setattr(module, "pool_grid", lambda x, *a: calls.append(len(x)) or pool_grid(x, *a))
    mask = np.ones((6, 2), dtype=bool)
    visual = [torch.randn(4, 3) for _ in range(6)]
    t = pack(torch.randn(6, 3), mask, [(b, 1) for b in range(6)], visual, [(2, 2)] * 6)
    t.pool([(2, 2), (1, 2), (2, 2), (1, 1), (2, 2), (1, 2)])
    assert sorted(calls) == [2, 3]


# Spans of one column for each cell, newline columns, given positions


def draw(seed):
    """Return three samples with wide spans, as lists and packed, and positions of their columns."""
    choose, samples, spans, image = random.Random(seed), [], [], 0
    for b in range(3):
        column = left = choose.randint(0, 3)
        sample = naive_rows.Sample(left, 0, {})
        for _ in range(choose.randint(0, 3)):
            for _ in range(choose.randint(0, 2)):
                sample.text[column] = torch.randn(2)
                column += 1
            grid, tail = (choose.randint(1, 5), choose.randint(2, 6)), choose.randint(0, 1)
            spans.append(Span.wide(b, image, column, grid, tail))
            cells = iter(range(grid[0] * grid[1]))
            lines = [
                [naive_rows.Row([next(cells)], torch.randn(2)) for _ in range(grid[1])]
                for _ in range(grid[0])
            ]
            sample.images.append(naive_rows.Image(column, spans[-1].width, lines, tail))
            column, image = column + spans[-1].width, image + 1
        sample.text[column] = torch.randn(2)
        sample.columns = column + 1 - left
        samples.append(sample)
    return choose, samples, spans


def packed(samples, spans, positions, axes):
    every = naive_rows.listed(samples, positions)
    return PackedTokens(
        torch.stack([value for _, _, value, _ in every]),
        tuple(sample.columns for sample in samples),
        tuple(sample.left for sample in samples),
        tuple(spans),
        "keep",
        torch.cat(positions, -1) if axes else None,
    )


def check(tokens, samples, positions):
    every = naive_rows.listed(samples, positions)
    torch.testing.assert_close(tokens.hidden, torch.stack([value for _, _, value, _ in every]))
    assert tokens.columns.tolist() == [column for _, column, _, _ in every]
    assert torch.equal(tokens.positions, torch.stack([p for *_, p in every], -1))
    assert tokens.lengths == tuple(sum(b == row[0] for row in every) for b in range(3))
    images = [image for sample in samples for image in sample.images]
    for span, image in zip(tokens.spans, images, strict=True):
        assert (span.rows, span.tail) == (len(image.rows), image.tail)
        for row, cells in enumerate(image.rows):
            assert np.flatnonzero(span.owner == row).tolist() == cells.cells
    places = [
        (b, column)
        for b, sample in enumerate(samples)
        for column in range(sample.left, sample.left + sample.columns)
    ]
    expected = [naive_rows.row_of(samples, *place) for place in places]
    assert [tokens.row(*place) for place in places] == expected
    found = tokens.rows_of_columns(*map(np.array, zip(*places, strict=True)))
    assert found.tolist() == expected


@pytest.mark.parametrize("axes", [0, 1, 3])
@pytest.mark.parametrize(
    "seed", [0, 1, 2, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]
)
def test_wide_spans_equal_lists_of_rows(seed, axes):
    torch.manual_seed(seed)
    choose, samples, spans = draw(seed)
    positions = [torch.arange(sample.columns) for sample in samples]
    if axes:  # such as those of Qwen2-VL: neither ascending nor unique
        shape = (axes,) if axes > 1 else ()
        positions = [torch.randint(0, 99, (*shape, sample.columns)) for sample in samples]
    tokens = packed(samples, spans, positions, axes)
    check(tokens, samples, positions)
    for _ in range(4):
        images = [image for sample in samples for image in sample.images]
        before = copy.deepcopy(samples)
        kind = choose.choice(["pool", "pool", "keep", "merge"])
        if kind == "pool":
            kernels = [(choose.randint(1, 3), choose.randint(1, 3)) for _ in images]
            reduce = choose.choice(["max", "avg"])
            changed = tokens.pool(kernels, reduce)
            for image, kernel in zip(images, kernels, strict=True):
                naive_rows.pool(image, kernel, reduce)
        elif kind == "keep":
            places = [
                np.array([i for i in range(len(x.rows)) if choose.random() < 0.7], np.int64)
                for x in images
            ]
            changed = tokens.keep(places)
            for image, kept in zip(images, places, strict=True):
                naive_rows.flat(image, [image.rows[i] for i in kept])
        else:  # neighbours become one row, the last row is dropped
            targets = [np.arange(len(x.rows)) // 2 for x in images]
            for target in targets:
                target[max(len(target) - 1, 1) :] = -1
            changed = tokens.merge(targets)
            for image, target in zip(images, targets, strict=True):
                groups = [np.flatnonzero(target == i) for i in range(target.max(initial=-1) + 1)]
                rows = [naive_rows.reduced([image.rows[i] for i in g], "avg") for g in groups]
                naive_rows.flat(image, rows)
        check(changed, samples, positions)
        check(tokens, before, positions)  # the pack before is as it was
        tokens = changed


def test_newline_tokens_are_pooled_only_below_each_other():
    grid = torch.arange(12.0).reshape(1, 3, 4, 1)
    pooled = pool_grid(grid, (2, 2), "avg", tail=1)[0, ..., 0]
    assert pooled.tolist() == [[2.5, 4, 5], [8.5, 10, 11]]
