"""What every source of data is: where its rows are, and how they are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dpn.data.batch import DataError
from dpn.data.grouping import Group

OnError = Literal["raise", "skip"]
TooLong = Literal["refuse", "cut"]
SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Draw:
    """Rows drawn by lot, or all the others: the two sides of a held-out split.

    Attributes:
        amount: how many; below 1, which share.
        seed: of the lot.
        drawn: whether the drawn rows are meant, or the others.
    """

    amount: float
    seed: int
    drawn: bool

    def choose(self, rows: Sequence[int]) -> Sequence[int]:
        """Those of the rows that are meant, in the same order.

        Raises:
            DataError: if one of the sides would be empty.
        """
        count = round(self.amount * len(rows) if self.amount < 1 else self.amount)
        if not 0 < count < len(rows):
            raise DataError(
                f"`data.holdout={self.amount}` of {len(rows)} rows leaves no row to train on or"
                " none to validate on; change it."
            )
        is_drawn = np.zeros(len(rows), dtype=bool)
        is_drawn[np.random.default_rng(self.seed).permutation(len(rows))[:count]] = True
        return np.asarray(rows)[is_drawn == self.drawn]


@dataclass(frozen=True)
class Split:
    """One file of rows in LLaVA's format.

    Attributes:
        file: JSON array of conversations.
        image_root: folder that image paths are relative to, and may not leave.
        template: name of the conversation template; None for the processor's own.
        rows: how many to use from the start of the file; None for all.
        draw: which of these; None for all.
    """

    file: Path
    image_root: Path
    template: str | None = None
    rows: int | None = None
    draw: Draw | None = None

    def numbers(self, total: int) -> Sequence[int]:
        """Numbers, from 0, of the rows that are used out of a file's total."""
        rows = range(total)[: self.rows]
        return self.draw.choose(rows) if self.draw else rows


@dataclass(frozen=True, kw_only=True)
class Source:
    """Settings that all sources share; a source adds its own and says where its splits are.

    Args:
        batch_size: samples per process and training step (before accumulation).
        global_batch: samples per optimizer step over all processes, which gives the accumulation;
            null: the trainer's accumulation stands.
        rows_per_batch: instead of batch_size: rows of text and images that a batch of one process
            holds at most, after the compression that is expected of projector and `router.keep`.
        eval_batch_size: samples per process and evaluation step.
        num_workers: processes that load samples; 0 loads in the main process.
        max_length: most ids a sample may have, each image counted as one.
        too_long: `refuse` takes a longer sample for a bad row, `cut` trains on its first ids, as in
            LLaVA. A question that is to be answered is never cut.
        on_error: `raise` stops at a bad row, `skip` takes the next good row instead and counts it.
        seed: of the order of training samples.
        last_batch: `fill` completes an epoch's last accumulation window from the epoch's start,
            `drop` leaves the incomplete window out.
        group: `llava` (LLaVA-1.5's finetuning), `llava_hr` and `dpn` put training samples of one
            kind together, with images or without, and make batches equally long in total, as those
            recipes do, see `dpn.data.grouping`; `none` shuffles freely. A row that takes a bad
            one's place may be of the other kind.
    """

    batch_size: int = 16
    global_batch: int | None = None
    rows_per_batch: int | None = None
    eval_batch_size: int = 32
    num_workers: int = 0
    max_length: int = 2048
    too_long: TooLong = "refuse"
    on_error: OnError = "raise"
    seed: int = 0
    last_batch: Literal["fill", "drop"] = "fill"
    group: Group = "none"

    def check(self) -> list[str]:
        """What is wrong with these settings, one sentence each; builds and writes nothing."""
        problems = []
        if self.rows_per_batch is not None and self.global_batch is not None:
            problems.append(
                "`data.rows_per_batch` and `data.global_batch` can not both be given: batches of"
                " equally many rows hold different numbers of samples; set one of them to null."
            )
        if self.rows_per_batch is not None and self.group != "none":
            problems.append(
                f"`data.rows_per_batch` and `data.group={self.group}` both say which samples make"
                " up a batch; set data.group=none."
            )
        return problems + self._outside(
            {
                "batch_size": (1, None),
                "eval_batch_size": (1, None),
                "num_workers": (0, None),
                "max_length": (2, None),
                "seed": (0, None),
            }
        )

    def _outside(self, limits: Mapping[str, tuple[int, int | None]]) -> list[str]:
        """Sentences about the settings that are smaller or larger than allowed."""
        problems = []
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f"at least {low}" if high is None else f"{low} to {high}"
                problems.append(f"`data.{name}={value}` is not possible; it can be {allowed}.")
        return problems

    def prepare(self) -> None:
        """Write what has to be there first; safe in several processes at once."""

    def split(self, name: SplitName) -> Split | None:
        """The rows of a split, or None if there are none."""
        raise TypeError(f"{type(self).__name__} does not say where its rows are.")

    def corpus(self) -> list[Split]:
        """All rows that a tokenizer should know, whichever of them this run trains on."""
        train = self.split("train")
        return [train] if train else []
