"""Batches of about equally many rows, not samples: what is left of long and short samples after
compression fills every device to the same degree.
"""

import heapq
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dpn.data.rows import Conversations

#: Samples whose ids are counted to learn how many a word has, and what it is if they do not tell.
SEEN, IDS_PER_WORD = 64, 1.4
#: Orders of an epoch that are tried until no batch holds more rows than it may.
TRIES = 32


def expected_rows(dataset: Conversations, image_rows: float | None) -> np.ndarray:
    """Rows that each sample will have, `[S]`, without loading it: text ids from its words, by the
    rate of some samples, and one image where it has any.

    Args:
        dataset: training samples.
        image_rows: of an image, after compression, mean over the decoder's layers.

    Raises:
        ValueError: if `image_rows` is not known.
    """
    if image_rows is None:
        raise ValueError("Set `image_rows` of the data module for batches of equally many rows.")
    words = np.abs(dataset.rows.lengths)
    some = np.linspace(0, len(dataset) - 1, min(SEEN, len(dataset))).astype(int)
    known = [(words[place], dataset.count_ids(place)) for place in some.tolist()]
    pairs = np.array([pair for pair in known if pair[1] is not None], dtype=float)
    text = words * IDS_PER_WORD
    if len(set(pairs[:, 0].tolist())) > 1:
        text = np.polyval(np.polyfit(pairs[:, 0], pairs[:, 1], 1), words)
    rows = np.ceil(text + image_rows * (dataset.rows.lengths > 0)).astype(int)
    return rows.clip(min=1)


class RowBudgetSampler(Sampler[list[int]]):
    """Batches of one rank, from any optimizer step on, as `BatchSampler`; every sample comes once
    an epoch.

    A step takes the samples next in the epoch's order, as many rows as in every other step, and
    deals them out over the batches of all ranks, each to the batch that is the least full. The
    number of steps is the smallest with which no batch of the first epoch overflows.

    Args:
        rows: `[S]` that each sample is expected to have.
        budget: most rows of a batch.
        shuffle: a new order each epoch; otherwise the order of the file.
        seed: of the order.
        accumulate: batches per optimizer step.
        rank: of this process.
        world: number of processes.

    Attributes:
        batches: of an epoch.

    Raises:
        ValueError: if a sample alone has more rows, or there are too few samples for a step.
    """

    def __init__(
        self,
        rows: np.ndarray,
        budget: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ):
        self.rows, self.budget, self.shuffle, self.seed = np.asarray(rows), budget, shuffle, seed
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.parts, self.position = accumulate * world, 0
        if len(self.rows) < self.parts:
            raise ValueError(
                f"{len(self.rows)} samples do not fill one optimizer step of {self.parts} batches;"
                " use fewer processes or less accumulation."
            )
        if self.rows.max() > budget:
            raise ValueError(
                f"data.rows_per_batch={budget} is too small: sample {int(self.rows.argmax())} alone"
                f" is expected to have {int(self.rows.max())} rows; raise it."
            )
        self.steps = self._fewest_steps()
        self.batches = self.steps * accumulate
        self._epoch: tuple[int, list[list[list[int]]]] = (-1, [])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def set_position(self, step: int) -> None:
        """Go on after so many optimizer steps since the start of training."""
        self.position = step * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """As many batches as an epoch has, from the position on."""
        for number in range(self.position, self.position + self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> list[int]:
        """The samples of this rank in a batch, counted since the start of training."""
        epoch, place = divmod(number, self.batches)
        step, part = divmod(place, self.accumulate)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._epoch_piles(epoch))
        return self._epoch[1][step][part * self.world + self.rank]

    def _fewest_steps(self) -> int:
        """With which the first epoch's first order overflows nowhere."""
        steps = max(1, int(self.rows.sum() / (self.budget * self.parts)))
        while steps * self.parts < len(self.rows) and not self._piles(0, 0, steps, self.budget):
            steps += max(1, steps // 100)
        return min(steps, len(self.rows) // self.parts)

    def _epoch_piles(self, epoch: int) -> list[list[list[int]]]:
        """The samples of an epoch by step and batch, in the first order that overflows nowhere; if
        there is none among those tried, in the first one.
        """
        for attempt in range(TRIES if self.shuffle else 1):
            if piles := self._piles(epoch, attempt, self.steps, self.budget):
                return piles
        return self._piles(epoch, 0, self.steps)

    def _piles(
        self, epoch: int, attempt: int, steps: int, budget: int | None = None
    ) -> list[list[list[int]]]:
        """The samples of an order by step and batch; none as soon as a batch is over the budget."""
        rng = np.random.default_rng([self.seed, epoch, attempt])
        order = rng.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        piles = []
        for samples in self._cut(order, steps):
            piles.append(self._deal(samples))
            if budget and max(self.rows[pile].sum() for pile in piles[-1]) > budget:
                return []
        return piles

    def _cut(self, order: np.ndarray, steps: int) -> list[np.ndarray]:
        """Runs of an order with about equally many rows, none with fewer samples than batches."""
        done = self.rows[order].cumsum()
        ends = np.searchsorted(done, done[-1] * np.arange(1, steps) / steps)
        least = self.parts * np.arange(1, steps)
        most = len(order) - least[::-1]
        return np.split(order, np.clip(np.maximum.accumulate(ends), least, most))

    def _deal(self, samples: np.ndarray) -> list[list[int]]:
        """Samples of a step to its batches, the longest first, each to the least full one."""
        piles: list[list[int]] = [[] for _ in range(self.parts)]
        heap = [(0, number) for number in range(self.parts)]
        for sample in samples[np.argsort(-self.rows[samples], kind="stable")].tolist():
            load, number = heapq.heappop(heap)
            piles[number].append(sample)
            heapq.heappush(heap, (load + int(self.rows[sample]), number))
        return piles
