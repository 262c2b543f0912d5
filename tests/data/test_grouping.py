import itertools

import numpy as np
import pytest

from dpn.data.sampler import BatchSampler
from tests.data.conftest import gpt, human, row
from tests.data.test_module import data_of

VARIANTS = ["llava", "llava_hr", "dpn"]
# Samples with images, without, batch size, ranks, accumulation.
CASES = {
    "sizes that divide": (64, 32, 2, 2, 2),
    "sizes that do not": (67, 29, 3, 2, 2),
    "one process": (50, 31, 4, 1, 1),
    "accumulation alone": (50, 31, 2, 1, 4),
    "ranks alone": (50, 31, 2, 4, 1),
    "leftovers of more than a megabatch": (31, 31, 4, 2, 1),
    "only images": (37, 0, 2, 2, 2),
    "only text": (0, 37, 2, 2, 2),
    "one text": (40, 1, 2, 2, 1),
    "fewer than a megabatch of either": (5, 3, 4, 2, 2),
}


def lengths_of(images, texts):
    """Many equal lengths among them, in a mixed order."""
    rng = np.random.default_rng(7)
    kinds = rng.permutation([1] * images + [-1] * texts)
    return kinds * rng.integers(1, 20, len(kinds))


def naive_order(lengths, group, batch_size, world, accumulate, seed, epoch):
    """The specification in lists, with the sampler's source of randomness."""
    rng = np.random.default_rng([seed, epoch])
    chunk_count = world if group == "llava_hr" else world * accumulate
    megabatch = chunk_count * batch_size

    def length_grouped(sizes):
        shuffled = [int(i) for i in rng.permutation(len(sizes))]
        result = []
        for start in range(0, len(shuffled), megabatch):
            part = sorted(shuffled[start : start + megabatch], key=lambda i: sizes[i], reverse=True)
            chunks = [[] for _ in range(chunk_count)]
            if len(part) % chunk_count:
                for position, i in enumerate(part):
                    chunks[position % chunk_count].append(i)
            else:
                for i in part:
                    open_ones = [c for c in chunks if len(c) < len(part) // chunk_count]
                    weights = [sum(sizes[j] for j in c) for c in open_ones]
                    open_ones[weights.index(min(weights))].append(i)
            result += itertools.chain(*chunks)
        return result

    if all(n > 0 for n in lengths) or all(n < 0 for n in lengths):
        return length_grouped(list(lengths))
    full, left = [], []
    for sign in (1, -1):
        own = [i for i, n in enumerate(lengths) if n * sign > 0]
        stream = [own[i] for i in length_grouped([lengths[i] * sign for i in own])]
        parts = [stream[i : i + megabatch] for i in range(0, len(stream), megabatch)]
        full += parts[:-1]
        left += parts[-1]
    order = [full[i] for i in rng.permutation(len(full))]
    if group == "llava":
        order = [*order, sorted(left)]
    if group == "llava_hr" and len(left) >= megabatch:
        order = [left[:megabatch], *order, left[megabatch:]]
    elif group == "llava_hr":
        order = [*order, left]
    return list(itertools.chain(*order))


def sampler_of(case, group, rank=0, **options):
    images, texts, batch_size, world, accumulate = CASES[case]
    lengths = lengths_of(images, texts)
    places = {"rank": rank, "world": world, "accumulate": accumulate}
    return BatchSampler(
        len(lengths), batch_size, **places, group=group, lengths=lengths, seed=3, **options
    )


@pytest.mark.parametrize("group", VARIANTS)
@pytest.mark.parametrize("case", [c for c in CASES if c != "fewer than a megabatch of either"])
def test_ranks_together_take_the_order_of_the_specification(case, group):
    *_, batch_size, world, accumulate = CASES[case]
    ranks = [sampler_of(case, group, rank) for rank in range(world)]
    for epoch in range(2):
        expected = naive_order(
            ranks[0].lengths, group, batch_size, world, accumulate, seed=3, epoch=epoch
        )
        steps = -(-len(expected) // (batch_size * world * accumulate))
        for rank in ranks:
            assert len(rank) == steps * accumulate
            rank.set_position(epoch * steps)
        taken = [i for parts in zip(*ranks, strict=True) for batch in parts for i in batch]
        assert taken[: len(expected)] == expected
        assert taken[len(expected) :] == expected[: len(taken) - len(expected)]


@pytest.mark.parametrize("case", ["sizes that divide", "sizes that do not", "ranks alone"])
def test_batches_of_dpn_are_of_one_kind_and_the_last_megabatches_are_left_out(case):
    images, texts, batch_size, world, accumulate = CASES[case]
    megabatch = batch_size * world * accumulate
    for rank in range(world):
        sampler = sampler_of(case, "dpn", rank)
        for batch in sampler:
            assert len(set(np.sign(sampler.lengths[batch]))) == 1
        full = -(-images // megabatch) - 1 + -(-texts // megabatch) - 1
        assert len(sampler) == full * accumulate


@pytest.mark.parametrize("group", ["llava", "llava_hr"])
@pytest.mark.parametrize("case", CASES)
def test_llava_and_llava_hr_show_every_sample_once(case, group):
    order = sampler_of(case, group)._samples(0)
    assert sorted(order) == list(range(len(order))) == list(range(sum(CASES[case][:2])))


def test_too_few_samples_for_dpn_are_an_error_with_a_way_out():
    with pytest.raises(ValueError, match=r"0 samples do not fill .* `data.group=dpn` leaves out"):
        sampler_of("fewer than a megabatch of either", "dpn")


@pytest.mark.parametrize("group", VARIANTS)
@pytest.mark.parametrize("last", ["fill", "drop"])
def test_resumed_equals_uninterrupted(group, last):
    def sampler():
        return sampler_of("sizes that do not", group, last=last)

    one, length = sampler(), len(sampler())
    whole = []
    for epoch in range(2):
        one.set_position(epoch * length // one.accumulate)
        whole += one
    for step in range(length // one.accumulate):
        resumed = sampler()
        resumed.set_position(step)
        done = step * one.accumulate
        assert list(resumed) == whole[done : done + length]


@pytest.mark.parametrize("group", ["llava", "dpn"])
def test_an_optimizer_step_sees_the_same_samples_however_they_are_spread(group):
    lengths = lengths_of(70, 40)
    alone = BatchSampler(110, 12, group=group, lengths=lengths, last="drop")
    spread = [
        list(
            BatchSampler(
                110, 2, group=group, lengths=lengths, last="drop", rank=r, world=3, accumulate=2
            )
        )
        for r in range(3)
    ]
    batches = [[i for batch in ranks for i in batch] for ranks in zip(*spread, strict=True)]
    steps = zip(batches[::2], batches[1::2], strict=True)
    assert [sorted(a + b) for a, b in steps] == [sorted(batch) for batch in alone]


def test_ranks_get_batches_of_about_the_same_total_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 960)

    def spread(group):
        ranks = [
            BatchSampler(960, 4, group=group, lengths=lengths, world=16, rank=r) for r in range(16)
        ]
        totals = np.array([[lengths[batch].sum() for batch in rank] for rank in ranks])
        return np.ptp(totals, axis=0).mean()

    assert spread("llava") < spread("none") / 10


def test_the_loader_groups_and_a_row_without_words_does_no_harm(write, processor):
    rows = [row(i) for i in range(6)]
    rows += [row(i, human("<image>\nWhat?"), gpt("red"), image="red.png") for i in range(6)]
    rows[2]["conversations"] = [human(""), gpt("")]
    data = data_of(write(rows), processor, batch_size=2, group="dpn", on_error="skip")
    batches = [batch.sample_ids.tolist() for batch in data.train_dataloader()]
    kinds = [{number < 6 for number in batch} for batch in batches]
    assert sorted(map(list, kinds)) == [[False], [False], [True], [True]]
