import itertools

import pytest

from dpn.data.sampler import BatchSampler


def epoch(sampler, number):
    sampler.set_position(number * len(sampler) // sampler.accumulate)
    return list(sampler)


def test_an_epoch_holds_every_sample_and_epochs_differ():
    sampler = BatchSampler(10, 3)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert [len(batch) for batch in first] == [3, 3, 3, 3]
    flat = list(itertools.chain(*first))
    assert sorted(flat[:10]) == list(range(10))
    assert flat[10:] == flat[:2]  # filled from the start of the epoch
    assert first != second
    assert first == epoch(BatchSampler(10, 3), 0)
    assert first != epoch(BatchSampler(10, 3, seed=1), 0)


def test_drop_leaves_out_the_incomplete_window_only():
    sampler = BatchSampler(23, 2, accumulate=3, last="drop")
    flat = list(itertools.chain(*sampler))
    assert len(flat) == len(set(flat)) == 18
    with pytest.raises(ValueError, match="5 samples do not fill one optimizer step of 6"):
        BatchSampler(5, 2, accumulate=3, last="drop")


def test_fill_repeats_a_data_set_smaller_than_a_window():
    sampler = BatchSampler(3, 4, accumulate=2)
    flat = list(itertools.chain(*sampler))
    assert len(flat) == 8
    assert {flat.count(i) for i in range(3)} == {2, 3}


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_equals_uninterrupted(accumulate, shuffle):
    def sampler():
        return BatchSampler(25, 2, accumulate=accumulate, shuffle=shuffle, seed=3)

    per_epoch = len(sampler())
    uninterrupted = epoch(sampler(), 0) + epoch(sampler(), 1) + epoch(sampler(), 2)
    for step in range(2 * per_epoch // accumulate):
        resumed = sampler()
        resumed.set_position(step)
        done = step * accumulate
        assert list(resumed) == uninterrupted[done : done + per_epoch]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (3, 2), (1, 6)])
def test_ranks_and_accumulation_together_take_what_one_process_takes(world, accumulate):
    """An optimizer step sees the same samples however they are spread."""
    alone = list(BatchSampler(50, 12))
    ranks = [
        list(
            BatchSampler(50, 12 // world // accumulate, accumulate=accumulate, rank=r, world=world)
        )
        for r in range(world)
    ]
    for step, whole in enumerate(alone):
        window = slice(step * accumulate, (step + 1) * accumulate)
        parts = [rank[window] for rank in ranks]
        spread = [i for micro in zip(*parts, strict=True) for batch in micro for i in batch]
        assert spread == whole


@pytest.mark.parametrize("size", [1, 5, 6, 7, 11, 12, 13])
def test_keep_gives_every_rank_the_same_number_of_batches_and_loses_nothing(size):
    ranks = [
        list(BatchSampler(size, 2, shuffle=False, rank=r, world=3, last="keep")) for r in range(3)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    flat = [i for rank in ranks for batch in rank for i in batch]
    assert set(flat) == set(range(size))
    assert len(flat) <= size + 2  # only a rank without a sample repeats one
    assert all(batch for rank in ranks for batch in rank)
