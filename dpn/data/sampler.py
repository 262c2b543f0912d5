"""Which samples make up which batch: a pure function of seed, epoch and rank."""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from dpn.data.grouping import Group, grouped_order


class BatchSampler(Sampler[list[int]]):
    """Batches of one rank, from any optimizer step on.

    Nothing about the past is stored: `set_position` finds the place from the optimizer step, so a
    resumed run sees the batches that an uninterrupted one would have seen. Together the ranks take
    what a single process with `world` times the batch size would take, in the same order; so does
    accumulation.

    Args:
        size: number of samples.
        batch_size: of this rank.
        shuffle: a new order each epoch; otherwise the order of the file.
        seed: of the order.
        accumulate: batches per optimizer step.
        rank: of this process.
        world: number of processes.
        last: what becomes of the samples that do not fill an optimizer step at the end of an epoch.
            `fill`: the step is completed from the epoch's start. `drop`: they are left out. `keep`
            (validation): a smaller last batch, shared by the ranks; a rank that would get nothing
            repeats the last sample, so that all have equally many batches.
        group: how shuffled samples are put together, see `grouped_order`; `none`: at random.
        lengths: `[size]` for `group`, see there.
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
                + " `data.group=dpn` leaves out the rest of either kind."
                * (group == "dpn")
            )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def set_position(self, step: int) -> None:
        """Go on after so many optimizer steps since the start of training."""
        self.position = step * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """As many batches as an epoch has, from the position on, running into the next epoch's
        order.

        After a resume inside an epoch, Lightning takes only those that the epoch lacks.
        """
        for number in itertools.islice(itertools.count(self.position), self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> list[int]:
        """The samples of this rank in a batch, counted since the start of training."""
        epoch, place = divmod(number, self.batches)
        order = self.order(epoch)
        everywhere = self.batch_size * self.world
        whole = order[place * everywhere : (place + 1) * everywhere]
        own = np.array_split(whole, self.world)[self.rank]
        return (own if len(own) else whole[-1:]).tolist()

    def order(self, epoch: int) -> np.ndarray:
        """All samples of an epoch in order, as far as they make up batches."""
        if self._order[0] != epoch:
            order = self._samples(epoch)
            if self.last != "keep":
                order = np.resize(order, self.batches * self.batch_size * self.world)
            self._order = (epoch, order)
        return self._order[1]

    def _samples(self, epoch: int) -> np.ndarray:
        """The samples that take part in an epoch, in order; equally many in each."""
        if not self.shuffle:
            return np.arange(self.size)
        rng = np.random.default_rng([self.seed, epoch])
        if self.group == "none" or self.lengths is None:
            return rng.permutation(self.size)
        return grouped_order(
            self.lengths, self.group, self.batch_size, self.world, self.accumulate, rng
        )
