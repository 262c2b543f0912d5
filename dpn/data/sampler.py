"""Batch sampler whose batches are a pure function of seed, epoch and rank."""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from dpn.data.grouping import Group, grouped_order


class BatchSampler(Sampler[list[int]]):
    """Sample batches of one rank, starting at any optimizer step.

    The sampler is stateless: `set_position` derives the position from the optimizer step, so a
    resumed run sees the same batches as an uninterrupted one. All ranks together take the samples
    that a single process with `world` times the batch size would take, in the same order; the same
    holds for accumulation.

    Args:
        size: Number of samples.
        batch_size: Batch size of this rank.
        shuffle: Whether each epoch has a new order; otherwise the order of the file.
        seed: Seed of the order.
        accumulate: Batches per optimizer step.
        rank: Rank of this process.
        world: Number of processes.
        last: How to treat the samples that do not fill an optimizer step at the end of an epoch.
            `fill` completes the step from the epoch's start; `drop` leaves them out; `keep` (for
            validation) makes a smaller last batch, split over the ranks. A rank that would get
            no sample repeats the last one, so that all ranks have the same number of batches.
        group: How to group shuffled samples, see `grouped_order`; `none` for random batches.
        lengths: `[size]`, sample lengths for `group`, see `grouped_order`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        last: Literal["fill", "drop", "keep"] = "fill",
        group: Group = "none",
        lengths: np.ndarray | None = None,
    ):
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.accumulate, self.rank, self.world, self.last = accumulate, rank, world, last
        self.group, self.lengths = group, lengths
        self.position = 0
        everywhere = batch_size * world
        size = len(self._samples(0))
        if last == "keep":
            self.batches = -(-size // everywhere)
        else:
            steps = -(-size // (everywhere * accumulate))
            if last == "drop":
                steps = size // (everywhere * accumulate)
            self.batches = steps * accumulate
        if not self.batches:
            raise ValueError(
                f"{size} samples do not fill one optimizer step of {everywhere * accumulate};"
                " use a smaller `data.batch_size`, or `data.last_batch=fill`."
                + " `data.group=dpn` leaves out the last samples of each kind."
                * (group == "dpn")
            )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.batches

    def set_position(self, step: int) -> None:
        """Continue after `step` optimizer steps, counted from the start of training."""
        self.position = step * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """Yield as many batches as an epoch has, starting at the position.

        From the middle of an epoch, this continues into the next epoch; after a resume, Lightning
        takes only the batches that are left in the current one.
        """
        for number in itertools.islice(itertools.count(self.position), self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> list[int]:
        """Return this rank's samples of a batch, counted from the start of training."""
        epoch, place = divmod(number, self.batches)
        order = self.order(epoch)
        everywhere = self.batch_size * self.world
        whole = order[place * everywhere : (place + 1) * everywhere]
        own = np.array_split(whole, self.world)[self.rank]
        return (own if len(own) else whole[-1:]).tolist()

    def order(self, epoch: int) -> np.ndarray:
        """Return the samples of all batches of an epoch, in order."""
        if self._order[0] != epoch:
            order = self._samples(epoch)
            if self.last != "keep":
                order = np.resize(order, self.batches * self.batch_size * self.world)
            self._order = (epoch, order)
        return self._order[1]

    def _samples(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in order; their number is the same in every epoch."""
        if not self.shuffle:
            return np.arange(self.size)
        rng = np.random.default_rng([self.seed, epoch])
        if self.group == "none" or self.lengths is None:
            return rng.permutation(self.size)
        return grouped_order(
            self.lengths, self.group, self.batch_size, self.world, self.accumulate, rng
        )
