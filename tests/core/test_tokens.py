"""PackedTokens: derived quantities after every operation, in hand-made examples."""

import numpy as np
import pytest
import torch

from dpn.tokens import pack, pool_grid


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
