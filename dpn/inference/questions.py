"""Many questions to a trained model: in batches of like length, shared out to all processes, with a
journal that an interrupted evaluation goes on from.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from dpn import inference
from dpn.common.distributed import several_processes, share
from dpn.common.progress import progress
from dpn.data.batch import Batch, DataError, Sample, collate
from dpn.model import DPNForConditionalGeneration, DPNProcessor

#: Of an answer, see `dpn.inference.answer`, and of the sample's `meta`.
Row = dict[str, Any]


class Exam(Protocol):
    """Questions that can be asked one by one."""

    @property
    def lengths(self) -> Any:
        """Of each question; those of like length are asked together."""

    def __len__(self) -> int: ...

    def make(self, index: int) -> Sample:
        """A prompt with its images, or a DataError; `meta` becomes part of the row."""
        ...

    def where(self, index: int) -> str:
        """The question in words, for a message."""
        ...


class Journal:
    """Answers as they come, one file for each process.

    Args:
        folder: of the files.
        name: names the exam and all that answers depend on; another name is another journal.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        rank = dist.get_rank() if several_processes() else 0
        self.path = folder / f"{name}.{rank}.jsonl"

    def read(self) -> dict[int, Row]:
        """The rows of all processes by the question's place; a line that was cut off is none."""
        rows: dict[int, Row] = {}
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    index, row = json.loads(line)
                    rows[index] = row
        return rows

    def add(self, rows: Mapping[int, Row]) -> None:
        """Write answers down, below a line of their own: the last one may have been cut off."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(item, ensure_ascii=False) for item in rows.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines))


def answer_all(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    exam: Exam,
    title: str,
    batch_size: int,
    max_new_tokens: int,
    journal: Journal | None = None,
    limit: int | None = None,
    workers: int = 0,
    **options: Any,
) -> tuple[dict[int, Row], list[str]]:
    """Answer every question of an exam; each process a contiguous share of those still open.

    Args:
        model: in eval mode.
        processor: of the model.
        exam: the questions.
        title: of the progress bar.
        batch_size: questions at a time and process.
        max_new_tokens: upper limit of an answer.
        journal: what was answered before, and where answers are written down.
        limit: only so many questions, the first ones.
        workers: processes that load images.
        options: see `dpn.inference.answer`.

    Returns:
        On all processes alike, the rows by their place in the exam, in its order, and a sentence
        for each question that could not be asked.

    Raises:
        AnswerError: naming the questions of the batch, if the model fails.
    """
    done = journal.read() if journal else {}
    if several_processes():
        dist.barrier()  # before anyone adds to what others read
    wanted = range(len(exam))[:limit]
    todo = share([index for index in wanted if index not in done])
    loader: DataLoader[Any] = DataLoader(
        _Asked(exam),
        batch_sampler=alike(todo, exam.lengths, batch_size),
        num_workers=workers,
        collate_fn=partial(_collate, pad_token_id=processor.pad_token_id),
    )
    refused: list[str] = []
    for asked in progress(loader, title, len(todo), lambda asked: len(asked.indices), "samples"):
        refused += asked.refused
        if asked.batch is None:
            continue
        try:
            inputs = inference.prompts(asked.batch)
            found = inference.answer(model, processor, inputs, max_new_tokens, **options)
        except Exception as error:
            names = "; ".join(exam.where(index) for index in asked.answered)
            raise AnswerError(f"The model failed at {names}: {error}") from error
        rows = {
            index: {**meta, **answer}
            for index, meta, answer in zip(asked.answered, asked.batch.meta, found, strict=True)
        }
        done |= rows
        if journal:
            journal.add(rows)
    return _gather(done, refused)


def fingerprint(*things: Any) -> str:
    """12 hex digits that change with values, and with the content of files and folders.

    Of large files 16 pieces are read; enough to tell two trained models apart.
    """
    digest = hashlib.sha256()
    for thing in things:
        files = [thing] if isinstance(thing, Path) else []
        if files and thing.is_dir():
            files = sorted(path for path in thing.iterdir() if path.is_file())
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for place in range(0, size, max(size // 16, 2**16)):
                    file.seek(place)
                    digest.update(file.read(2**16))
        if not files:
            digest.update(json.dumps(thing, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()[:12]


class AnswerError(RuntimeError):
    """The model gave no answer."""


class _Asked(Dataset[Any]):
    """Samples of an exam by their place, or why there is none."""

    def __init__(self, exam: Exam):
        self.exam = exam

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        try:
            return index, self.exam.make(index)
        except DataError as error:
            return index, f"{self.exam.where(index)}: {error}"


@dataclass(frozen=True)
class _Batch:
    """Some questions.

    Attributes:
        indices: their places.
        answered: those of them that can be asked.
        batch: of these; None if there are none.
        refused: a sentence for each of the others.
    """

    indices: list[int]
    answered: list[int]
    batch: Batch | None
    refused: list[str]


def _collate(items: Sequence[tuple[int, Sample | str]], pad_token_id: int) -> _Batch:
    good = [(index, item) for index, item in items if isinstance(item, Sample)]
    samples = [sample for _, sample in good]
    return _Batch(
        [index for index, _ in items],
        [index for index, _ in good],
        collate(samples, pad_token_id, "left") if samples else None,
        [item for _, item in items if isinstance(item, str)],
    )


def alike(indices: Sequence[int], lengths: Any, size: int) -> list[list[int]]:
    """Batches of like length, the longest first: what is too long for the memory fails at once."""
    order = sorted(indices, key=lambda index: -int(lengths[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _gather(rows: dict[int, Row], refused: list[str]) -> tuple[dict[int, Row], list[str]]:
    """Those of all processes."""
    shares: list[Any] = [(rows, refused)]
    if several_processes():
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (rows, refused))
    every = {index: row for share, _ in shares for index, row in share.items()}
    return dict(sorted(every.items())), [s for _, share in shares for s in share]
