"""Base class of data sources: where the rows are, and how they are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dpn import metrics
from dpn.common.ranges import AtLeast0, AtLeast1
from dpn.data.batch import DataError
from dpn.data.grouping import Group
from dpn.data.image_rules import OWN, ImageRules

OnError = Literal["raise", "skip"]
TooLong = Literal["refuse", "cut"]
SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Draw:
    """A random selection of rows, or all other rows: the two sides of a held-out split.

    Attributes:
        amount: Number of rows to draw; below 1 a share of all rows.
        seed: Seed of the draw.
        drawn: Whether the drawn rows are chosen, or the others.
        most: Largest number of rows to choose, from the first one; None: all.
    """

    amount: float
    seed: int
    drawn: bool
    most: int | None = None

    def choose(self, rows: Sequence[int]) -> Sequence[int]:
        """Return the chosen rows, in the same order.

        Raises:
            DataError: If one of the sides is empty.
        """
        count = round(self.amount * len(rows) if self.amount < 1 else self.amount)
        if not 0 < count < len(rows):
            raise DataError(
                f"`data.holdout={self.amount}` of {len(rows)} rows leaves no rows to train on or"
                " none to validate on; change it."
            )
        is_drawn = np.zeros(len(rows), dtype=bool)
        is_drawn[np.random.default_rng(self.seed).permutation(len(rows))[:count]] = True
        return np.asarray(rows)[is_drawn == self.drawn][: self.most]


@dataclass(frozen=True)
class Split:
    """One file of rows in LLaVA's format.

    Attributes:
        file: JSON array of conversations.
        image_root: Folder that image paths are relative to; they must stay inside it.
        template: Name of the conversation template; None: the processor's.
        rows: Number of rows to use from the start of the file; None: all.
        draw: Selection of these rows; None: all.
        images: How image files are read.
    """

    file: Path
    image_root: Path
    template: str | None = None
    rows: int | None = None
    draw: Draw | None = None
    images: ImageRules = OWN

    def numbers(self, total: int) -> Sequence[int]:
        """Return the indices of the rows that are used, given the file's number of rows."""
        rows = range(total)[: self.rows]
        return self.draw.choose(rows) if self.draw else rows


@dataclass(frozen=True, kw_only=True)
class Source:
    """Base class of data sources, with the settings that all of them share.

    A source adds its own settings and implements `split`. Its YAML file must set at least
    `batch_size`, `global_batch` and `max_length`.

    Args:
        batch_size: Number of samples per process and training step, before accumulation.
        global_batch: Number of samples per optimizer step over all processes; it determines the
            accumulation. null: the trainer's accumulation is used.
        rows_per_batch: Largest number of text and image rows in a batch of one process, after the
            compression that is expected of projector and `router.keep`; replaces `batch_size`.
        eval_batch_size: Number of samples per process and evaluation step.
        num_workers: Number of processes that load samples; 0 loads in the main process.
        max_length: Largest number of ids of a sample; each image counts as one.
        too_long: Treatment of longer samples: `refuse` treats them as bad rows, `cut` trains on
            their first ids, as LLaVA does. Questions of an evaluation are never cut.
        on_error: Treatment of bad rows: `raise` stops, `skip` uses the next good row instead and
            counts the bad one.
        seed: Seed of the order of training samples.
        last_batch: Treatment of an epoch's last accumulation window if it is incomplete: `fill`
            completes it from the start of the epoch, `drop` leaves it out.
        group: Grouping of training samples into batches. `llava` (LLaVA-1.5's finetuning),
            `llava_hr` and `dpn` put samples of one kind together, with or without images, and
            balance the length of batches, as these recipes do, see `dpn.data.grouping`. `none`
            shuffles freely. A row that replaces a bad one may be of the other kind.
        metric: Rule that scores answers to held-out questions, a name of `dpn.metrics.rules` or an
            entry point of the group `dpn.metrics`; `val/accuracy` is the mean score.
    """

    batch_size: AtLeast1 = 16
    global_batch: AtLeast1 | None = None
    rows_per_batch: AtLeast1 | None = None
    eval_batch_size: AtLeast1 = 32
    num_workers: AtLeast0 = 0
    max_length: int = 2048
    too_long: TooLong = "refuse"
    on_error: OnError = "raise"
    seed: int = 0
    last_batch: Literal["fill", "drop"] = "fill"
    group: Group = "none"
    metric: str = metrics.DEFAULT

    def check(self) -> list[str]:
        """Return an error sentence for each problem of the settings, without writing anything."""
        problems = []
        if self.rows_per_batch is not None and self.global_batch is not None:
            problems.append(
                "`data.rows_per_batch` and `data.global_batch` cannot both be given: batches of"
                " equally many rows have different numbers of samples; set one to null."
            )
        if self.rows_per_batch is not None and self.group != "none":
            problems.append(
                f"`data.rows_per_batch` and `data.group={self.group}` both determine the"
                " samples of a batch; set data.group=none."
            )
        if self.metric not in metrics.names():
            known = ", ".join(metrics.names())
            problems.append(f"`data.metric={self.metric}` is unknown; there is {known}.")
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
        """Return an error sentence for each setting that is smaller or larger than allowed."""
        problems = []
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                allowed = f"at least {low}" if high is None else f"{low} to {high}"
                problems.append(f"`data.{name}={value}` is not possible; it can be {allowed}.")
        return problems

    def prepare(self) -> None:
        """Write files that have to exist first; several processes may call it at once."""

    def split(self, name: SplitName) -> Split | None:
        """Return the rows of a split, or None if there are none."""
        raise TypeError(f"{type(self).__name__} does not implement split.")

    def corpus(self) -> list[Split]:
        """Return all rows that a tokenizer is trained on, whichever of them this run uses."""
        train = self.split("train")
        return [train] if train else []
