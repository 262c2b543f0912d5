"""Batch sampler for batches with about the same number of packed rows instead of samples.

After compression, long and short samples together then fill every device to the same degree.
"""

import heapq
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dpn.data.rows import Conversations

#: Samples whose ids are counted to estimate the ids per word, and the value if that fails.
SEEN, IDS_PER_WORD = 64, 1.4
#: Maximum number of orders to try until no batch of an epoch exceeds the budget.
TRIES = 32


def expected_rows(dataset: Conversations, image_rows: float | None) -> np.ndarray:
    """Estimate the packed rows of each sample, `[S]`, without loading it.

    The number of text ids is estimated from the number of words, with a line fitted to a few
    samples. Samples with images are counted as if they had one.

    Args:
        dataset: Training samples.
        image_rows: Rows of an image after compression, averaged over the decoder's layers.

    Raises:
        ValueError: If `image_rows` is None.
    """
    if image_rows is None:
        raise ValueError("Set `image_rows` of the data module to use `rows_per_batch`.")
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
    """Sample batches of one rank within a budget of packed rows.

    Like `BatchSampler`, it can start at any optimizer step. Every sample appears once per epoch.
    Each optimizer step takes the next samples in the epoch's order, with about the same total
    number of rows in every step, and assigns each sample to the least full of the step's batches
    over all ranks. The number of steps is the smallest for which no batch of the first epoch
    exceeds the budget.

    Args:
        rows: `[S]`, expected packed rows of each sample.
        budget: Maximum number of rows in a batch.
        shuffle: Whether each epoch has a new order; otherwise the order of the file.
        seed: Seed of the order.
        accumulate: Batches per optimizer step.
        rank: Rank of this process.
        world: Number of processes.

    Attributes:
        batches: Number of batches in an epoch.

    Raises:
        ValueError: If a single sample exceeds the budget, or there are too few samples for one
            step.
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
        """Return the number of batches in an epoch."""
        return self.batches

    def set_position(self, step: int) -> None:
        """Continue after `step` optimizer steps, counted from the start of training."""
        self.position = step * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of one epoch, starting at the position."""
        for number in range(self.position, self.position + self.batches):
            yield self.batch(number)

    def batch(self, number: int) -> list[int]:
        """Return this rank's samples of a batch, counted from the start of training."""
        epoch, place = divmod(number, self.batches)
        step, part = divmod(place, self.accumulate)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._epoch_piles(epoch))
        return self._epoch[1][step][part * self.world + self.rank]

    def _fewest_steps(self) -> int:
        """Return the smallest number of steps with which the first order keeps to the budget."""
        steps = max(1, int(self.rows.sum() / (self.budget * self.parts)))
        while steps * self.parts < len(self.rows) and not self._piles(0, 0, steps, self.budget):
            steps += max(1, steps // 100)
        return min(steps, len(self.rows) // self.parts)

    def _epoch_piles(self, epoch: int) -> list[list[list[int]]]:
        """Return the samples of an epoch by step and batch.

        Takes the first order in which no batch exceeds the budget, or the very first one if none
        of those tried does so.
        """
        for attempt in range(TRIES if self.shuffle else 1):
            if piles := self._piles(epoch, attempt, self.steps, self.budget):
                return piles
        return self._piles(epoch, 0, self.steps)

    def _piles(
        self, epoch: int, attempt: int, steps: int, budget: int | None = None
    ) -> list[list[list[int]]]:
        """Return the samples of an order by step and batch; empty if a batch exceeds the budget."""
        rng = np.random.default_rng([self.seed, epoch, attempt])
        order = rng.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        piles = []
        for samples in self._cut(order, steps):
            piles.append(self._deal(samples))
            if budget and max(self.rows[pile].sum() for pile in piles[-1]) > budget:
                return []
        return piles

    def _cut(self, order: np.ndarray, steps: int) -> list[np.ndarray]:
        """Split an order into steps of about equal rows, with at least one sample per batch."""
        done = self.rows[order].cumsum()
        ends = np.searchsorted(done, done[-1] * np.arange(1, steps) / steps)
        least = self.parts * np.arange(1, steps)
        most = len(order) - least[::-1]
        return np.split(order, np.clip(np.maximum.accumulate(ends), least, most))

    def _deal(self, samples: np.ndarray) -> list[list[int]]:
        """Assign the samples of a step, longest first, each to the least full batch."""
        piles: list[list[int]] = [[] for _ in range(self.parts)]
        heap = [(0, number) for number in range(self.parts)]
        for sample in samples[np.argsort(-self.rows[samples], kind="stable")].tolist():
            load, number = heapq.heappop(heap)
            piles[number].append(sample)
            heapq.heappush(heap, (load + int(self.rows[sample]), number))
        return piles
