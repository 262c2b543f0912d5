"""Batches within a row budget for any number of ranks, and the estimate of rows."""

import itertools

import numpy as np
import pytest

from dpn.data.row_budget import RowBudgetSampler, expected_rows
from dpn.data.rows import Conversations
from tests.data.conftest import gpt, human, row
from tests.data.test_rows import dataset

ROWS = np.random.default_rng(0).integers(20, 200, 300)
BUDGET = 1000


def sampler(**options):
    return RowBudgetSampler(ROWS, BUDGET, **{"seed": 1, **options})


def epoch(one, number):
    one.set_position(number * len(one) // one.accumulate)
    return list(one)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2)])
def test_every_sample_comes_once_and_no_batch_overflows(world, accumulate):
    ranks = [sampler(world=world, rank=r, accumulate=accumulate) for r in range(world)]
    for number in range(3):
        batches = [epoch(one, number) for one in ranks]
        flat = list(itertools.chain(*itertools.chain(*batches)))
        assert sorted(flat) == list(range(len(ROWS)))
        assert max(ROWS[batch].sum() for each in batches for batch in each) <= BUDGET
        assert {len(each) for each in batches} == {len(ranks[0])}
    assert len(ranks[0]) % accumulate == 0
    filled = ROWS.sum() / (len(ranks[0]) * world * BUDGET)
    assert filled > 0.8


def test_ranks_get_about_equally_many_rows_in_each_step():
    ranks = [sampler(world=4, rank=r) for r in range(4)]
    for batches in zip(*ranks, strict=True):
        loads = [ROWS[batch].sum() for batch in batches]
        assert max(loads) - min(loads) <= ROWS.max()
    spread = np.mean([np.ptp([ROWS[b].sum() for b in bs]) for bs in zip(*ranks, strict=True)])
    assert spread < 0.1 * BUDGET


def test_resumed_equals_uninterrupted():
    whole = sampler(accumulate=2)
    uninterrupted = epoch(whole, 0) + epoch(whole, 1) + epoch(whole, 2)
    for step in (0, 1, 5, len(whole) // 2, len(whole)):
        resumed = sampler(accumulate=2)
        resumed.set_position(step)
        assert list(resumed) == uninterrupted[2 * step : 2 * step + len(whole)]


def test_epochs_and_seeds_differ_unless_the_order_is_that_of_the_file():
    assert epoch(sampler(), 0) != epoch(sampler(), 1)
    assert epoch(sampler(), 0) != epoch(sampler(seed=2), 0)
    still = sampler(shuffle=False)
    assert epoch(still, 0) == epoch(still, 1)
    assert max(still.batch(0)) < min(still.batch(2))


def test_impossible_budgets_are_refused():
    with pytest.raises(ValueError, match="rows_per_batch=100 is too small: sample"):
        RowBudgetSampler(ROWS, 100)
    with pytest.raises(ValueError, match="2 samples do not fill one optimizer step of 4"):
        RowBudgetSampler(np.array([5, 5]), 20, world=2, accumulate=2)


def test_expected_rows_are_near_those_of_the_samples(write, processor):
    rows = [
        row(
            n, human("<image>\nWhat colour is " + "the cat " * n + "?"), gpt("red"), image="red.png"
        )
        if n % 2
        else row(n, human("How many birds " * n + "?"), gpt("12 of them"))
        for n in range(1, 13)
    ]
    data = dataset(write(rows), processor, Conversations)
    found = expected_rows(data, 30.5)
    true = [
        len(sample.input_ids) + 30.5 * len(sample.images) for sample in map(data.make, range(12))
    ]
    assert np.abs(found - true).max() < 15
    assert np.corrcoef(found, true)[0, 1] > 0.97
    with pytest.raises(ValueError, match="Set `image_rows`"):
        expected_rows(data, None)


def test_bad_rows_do_not_count(write, processor):
    rows = [row(n, human("How many birds " * n + "?"), gpt("12")) for n in range(1, 6)]
    data = dataset(write([*rows, {"id": "bad"}]), processor, Conversations)
    assert data.count_ids(5) is None
    assert len(expected_rows(data, 0.0)) == 6
