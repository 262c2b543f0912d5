"""Lightning data module over the splits of a source."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from dpn.common.distributed import share
from dpn.data.batch import Batch, DataError, collate
from dpn.data.conversation import template
from dpn.data.encoding import corpus_text
from dpn.data.loading import SampleLoader
from dpn.data.row_budget import RowBudgetSampler, expected_rows
from dpn.data.row_format import read_row
from dpn.data.rows import Conversations, FileRows
from dpn.data.sampler import BatchSampler
from dpn.data.sources.base import Source, Split

log = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Training and validation batches; build the trainer with `use_distributed_sampler=False`.

    Rank, number of processes, accumulation and optimizer step come from the trainer; without a
    trainer there is one process.

    Args:
        source: Data source to load.
        processor: A `DPNProcessor`; may be set later, before the first loader.

    Attributes:
        image_rows: Expected packed rows of an image in a decoder layer, for `rows_per_batch`.
        skipped: Error message of each row skipped so far, by file and row number.
    """

    def __init__(self, source: Source, processor: Any = None):
        super().__init__()
        self.source, self.processor = source, processor
        self.image_rows: float | None = None
        self.skipped: dict[tuple[str, int], str] = {}

    def prepare_data(self) -> None:
        """Write the source's files if they are missing."""
        self.source.prepare()

    def corpus(self) -> Iterator[str]:
        """Yield all training text as the model will see it, to train a tokenizer on."""
        for split in self.source.corpus():
            style = template(split.template or "v1")
            for row in FileRows(split):
                try:
                    turns, images = read_row(row)
                    yield from corpus_text(turns, len(images), style)
                except DataError:
                    continue  # bad rows are reported when they are loaded

    def train_dataloader(self) -> "Loader":
        """Return shuffled conversations, starting at the trainer's optimizer step."""
        source, trainer = self.source, self.trainer
        dataset = self._conversations(self._split("train"))
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        overfit = bool(getattr(trainer, "overfit_batches", 0))
        common: dict[str, Any] = {
            "shuffle": not overfit,
            "seed": source.seed,
            "accumulate": accumulate,
            **self._place(),
        }
        sampler: BatchSampler | RowBudgetSampler
        if source.rows_per_batch is not None:
            rows = expected_rows(dataset, self.image_rows)
            sampler = RowBudgetSampler(rows, source.rows_per_batch, **common)
        else:
            sampler = BatchSampler(
                len(dataset),
                source.batch_size,
                last=source.last_batch,
                group=source.group,
                lengths=dataset.rows.lengths,
                **common,
            )

        def step() -> int:
            return self.trainer.global_step if self.trainer and not overfit else 0

        return self._loader(dataset, sampler, step, accumulate)

    def val_dataloader(self) -> "Loader | list[Any]":
        """Return held-out conversations in the order of the file, with labels."""
        split = self.source.split("val")
        if split is None:
            return []
        dataset = self._conversations(split)
        size = self.source.eval_batch_size
        sampler = BatchSampler(len(dataset), size, shuffle=False, last="keep", **self._place())
        return self._loader(dataset, sampler)

    def val_share(self) -> "SampleLoader | list[Any]":
        """Return this process's part of the held-out conversations.

        All processes together see each conversation once, while `val_dataloader` repeats some so
        that every process gets the same number of batches.
        """
        split = self.source.split("val")
        if split is None:
            return []
        dataset, size = self._conversations(split), self.source.eval_batch_size
        own = share(range(len(dataset)))
        return self._batches(dataset, [own[i : i + size] for i in range(0, len(own), size)])

    def _conversations(self, split: Split) -> Conversations:
        source = self.source
        return Conversations(
            split, self._processor, source.max_length, source.on_error, source.too_long
        )

    def _loader(
        self,
        dataset: Conversations,
        sampler: BatchSampler | RowBudgetSampler,
        step: Callable[[], int] = lambda: 0,
        accumulate: int = 1,
    ) -> "Loader":
        batches = self._batches(dataset, sampler)
        return Loader(batches, sampler, self._note_skipped, step, accumulate)

    def _batches(self, dataset: Conversations, sampler: Iterable[list[int]]) -> SampleLoader:
        return SampleLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=self.source.num_workers,
            persistent_workers=self.source.num_workers > 0,
            pin_memory=self._on_gpu,
            collate_fn=partial(collate, pad_token_id=self._processor.pad_token_id),
        )

    def _note_skipped(self, batch: Batch) -> None:
        for meta in batch.meta:
            for key, message in meta.pop("skipped", {}).items():
                if key not in self.skipped:
                    self.skipped[key] = message
                    log.warning("Skipped bad row number %d. %s", len(self.skipped), message)

    def _split(self, name: Literal["train", "val"]) -> Split:
        split = self.source.split(name)
        if split is None:
            raise DataError(f"The data source has no {name} rows; set its {name} file.")
        return split

    def _place(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"rank": trainer.global_rank, "world": trainer.world_size} if trainer else {}

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def _processor(self) -> Any:
        if self.processor is None:
            raise ValueError("Set `processor` of the data module before asking for a loader.")
        return self.processor


class Loader:
    """`SampleLoader` wrapper that starts at the optimizer step and counts tokens per window.

    Args:
        batches: Loader to wrap.
        sampler: Batch sampler of `batches`.
        note: Callback for every batch.
        step: Returns the number of optimizer steps done; called before an epoch's first batch.
        accumulate: Batches per accumulation window; `window_tokens` of each batch is set to the
            supervised tokens of its whole window.
    """

    def __init__(
        self,
        batches: SampleLoader,
        sampler: BatchSampler | RowBudgetSampler,
        note: Callable[[Batch], None],
        step: Callable[[], int],
        accumulate: int = 1,
    ):
        # Not `self.sampler`: Lightning replaces an attribute of that name with overfit_batches.
        self.batches, self.order, self.note = batches, sampler, note
        self.step, self.accumulate = step, accumulate

    @property
    def dataset(self) -> Conversations:
        """Dataset of the wrapped loader."""
        return self.batches.dataset.dataset  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        # Runs at the first `next`: Lightning may create the iterator before it restores the
        # optimizer step.
        self.order.set_position(self.step())
        batches: Iterator[Batch] = iter(self.batches)
        while window := list(islice(batches, self.accumulate)):
            tokens = sum(batch.num_supervised for batch in window)
            for batch in window:
                self.note(batch)
                yield replace(batch, window_tokens=tokens)

    # Lightning warns about loaders without these; the optimizer step is the only state.
    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the position follows from the optimizer step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, as there is no state."""
