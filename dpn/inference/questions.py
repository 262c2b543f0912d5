"""Answer many questions in batches of similar length, distributed over all processes.

Answers are saved in a journal, from which an interrupted evaluation continues.
"""

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from dpn import inference
from dpn.common.distributed import several_processes, share
from dpn.common.files import BLANK, json_lines, parse_json
from dpn.common.progress import progress
from dpn.data.batch import Batch, DataError, Sample, collate
from dpn.metrics.answers import Row
from dpn.model import DPNForConditionalGeneration, DPNProcessor
from dpn.runs.saved import wrong_fields

log = logging.getLogger(__name__)


class QuestionSet(Protocol):
    """Questions that can be prepared one by one."""

    @property
    def lengths(self) -> Any:
        """Length of each question; questions of similar length are batched together."""

    def __len__(self) -> int: ...

    def make(self, index: int) -> Sample:
        """Prepare a prompt with its images, or raise DataError; `meta` becomes part of the row."""
        ...

    def where(self, index: int) -> str:
        """Return the name of a question, for messages."""
        ...


#: Fields of an answer, in addition to those that every line of rows.jsonl has.
_ANSWER = ("answer", "prefill_flops", "new_tokens", "ms", "prefill_ms")


class Journal:
    """Answers saved as soon as they are generated, in one file per process.

    Args:
        folder: Folder of the files.
        name: Name that identifies the question set and everything that the answers depend on.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        rank = dist.get_rank() if several_processes() else 0
        self.path = folder / f"{name}.{rank}.jsonl"

    def read(self, count: int | None = None) -> dict[int, Row]:
        """Read the rows of all processes by index of the question.

        Lines that are incomplete or damaged are skipped, so that their questions are asked again.

        Args:
            count: Number of questions; answers to others are damaged, too.
        """
        rows: dict[int, Row] = {}
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            bad = 0
            for _, entry in json_lines(path):
                if _is_entry(entry, count):
                    rows[entry[0]] = entry[1]
                else:
                    bad += entry is not BLANK
            if bad:
                log.warning("%s: %d damaged lines; their questions are asked again.", path, bad)
        return rows

    def add(self, rows: Mapping[int, Row]) -> None:
        """Append answers on new lines, since the last line of the file may be incomplete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = (parse_json(json.dumps(item)) for item in rows.items())  # as they will be read
        lines = (json.dumps([*e, _checksum(e)], ensure_ascii=False) for e in entries)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines))


def _is_entry(entry: Any, count: int | None) -> bool:
    """Whether a line of a journal is the index of one of `count` questions, its answer and their
    checksum, which earlier versions did not write.
    """
    if not isinstance(entry, list) or len(entry) not in (2, 3):
        return False
    index, row = entry[:2]
    if entry[2:] not in ([], [_checksum(entry[:2])]):
        return False
    if type(index) is not int or index < 0 or not isinstance(row, dict):
        return False
    if count is None:
        return isinstance(row.get("answer"), str)
    complete = all(row.get(name) is not None for name in _ANSWER)
    return index < count and complete and not wrong_fields({**row, "score": None})


def _checksum(entry: Sequence[Any]) -> str:
    return f"{zlib.crc32(json.dumps(entry).encode()):08x}"


def answer_all(
    model: DPNForConditionalGeneration,
    processor: DPNProcessor,
    questions: QuestionSet,
    title: str,
    batch_size: int,
    max_new_tokens: int,
    journal: Journal | None = None,
    limit: int | None = None,
    workers: int = 0,
    **options: Any,
) -> tuple[dict[int, Row], list[str]]:
    """Answer every question of a set; each process takes a contiguous part of the open ones.

    Args:
        model: Model in eval mode.
        processor: Processor of the model.
        questions: Question set.
        title: Title of the progress bar.
        batch_size: Batch size per process.
        max_new_tokens: Maximum number of tokens in an answer.
        journal: Journal with earlier answers, to which new ones are added.
        limit: Number of questions to ask, from the first one; None for all.
        workers: Processes that load images.
        options: Decoding options, see `dpn.inference.answer`.

    Returns:
        The rows by index in the question set, in its order, and an error message for each question
        that could not be asked; the same on all processes.

    Raises:
        AnswerError: If the model fails; names the questions of the batch.
    """
    done = journal.read(len(questions)) if journal else {}
    if several_processes():
        dist.barrier()  # before a process adds to files that others still read
    wanted = range(len(questions))[:limit]
    todo = share([index for index in wanted if index not in done])
    loader: DataLoader[Any] = DataLoader(
        QuestionDataset(questions),
        batch_sampler=batches_by_length(todo, questions.lengths, batch_size),
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
            names = "; ".join(questions.where(index) for index in asked.answered)
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
    """Return 12 hex digits that depend on values and on the content of files and folders.

    Only 16 pieces of large files are read, which is enough to distinguish two trained models.
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
    """The model failed to answer."""


class QuestionDataset(Dataset[Any]):
    """Dataset of a question set: index with the sample, or with an error message if it is bad."""

    def __init__(self, questions: QuestionSet):
        self.questions = questions

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        try:
            return index, self.questions.make(index)
        except DataError as error:
            return index, f"{self.questions.where(index)}: {error}"


@dataclass(frozen=True)
class _Batch:
    """A batch of questions.

    Attributes:
        indices: Indices of all questions.
        answered: Indices of the questions that can be asked.
        batch: Batch of these; None if there are none.
        refused: Error message for each of the others.
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


def batches_by_length(indices: Sequence[int], lengths: Any, size: int) -> list[list[int]]:
    """Batch questions of similar length, longest first, so that lack of memory shows at once."""
    order = sorted(indices, key=lambda index: -int(lengths[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _gather(rows: dict[int, Row], refused: list[str]) -> tuple[dict[int, Row], list[str]]:
    """Gather rows and error messages of all processes."""
    shares: list[Any] = [(rows, refused)]
    if several_processes():
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, (rows, refused))
    every = {index: row for share, _ in shares for index, row in share.items()}
    return dict(sorted(every.items())), [s for _, share in shares for s in share]
