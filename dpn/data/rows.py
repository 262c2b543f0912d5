"""Datasets over rows in LLaVA's format.

`Conversations` gives whole conversations for training, `Questions` single questions for generation.
"""

import json
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from dpn.data.batch import IGNORE, DataError, Sample
from dpn.data.conversation import IMAGE, Turn, place_images
from dpn.data.encoding import cut
from dpn.data.image_files import open_image
from dpn.data.index import open_index
from dpn.data.row_format import metadata, read_row
from dpn.data.sources.base import OnError, Split, TooLong


class FileRows:
    """Sequence of a split's rows, each read from the JSON file when accessed.

    Attributes:
        numbers: Number of each row in the file, starting at 0.

    Raises:
        DataError: If the file is missing or is not a JSON array of at least one row.
    """

    def __init__(self, split: Split):
        self.split, self.index = split, open_index(split.file)
        self.numbers = split.numbers(len(self.index.start))
        self._file = os.open(split.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Any:
        number = self.numbers[place]
        size, start = int(self.index.size[number]), int(self.index.start[number])
        # Unlike a memory-mapped file, this does not count towards a worker's own memory.
        content = os.pread(self._file, size, start)
        try:
            return json.loads(content.decode())
        except (ValueError, RecursionError) as error:
            raise DataError(
                "the file has changed since it was opened, or the row is nested too deeply; start"
                " again."
            ) from error

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    def __reduce__(self) -> Any:
        return FileRows, (self.split,)  # a spawned worker opens the file itself

    @property
    def lengths(self) -> np.ndarray:
        """`[R]`, words of each row, at least 1; negative for rows without image, as in LLaVA."""
        numbers = np.asarray(self.numbers)
        words = np.maximum(self.index.words[numbers], 1)
        return np.where(self.index.image[numbers], words, -words)


class Conversations(Dataset[Sample]):
    """Dataset with one training sample per row.

    Args:
        split: Rows to load.
        processor: A `DPNProcessor`, which encodes text and images.
        max_length: Maximum number of ids in a sample.
        too_long: How to treat longer samples: `refuse` reports them as bad rows, `cut` truncates.
        on_error: `raise`, or `skip` to use the next good row instead of a bad one, on every
            process alike; the sample's `meta["skipped"]` lists the bad rows with the reason.
    """

    def __init__(
        self,
        split: Split,
        processor: Any,
        max_length: int = 2048,
        on_error: OnError = "raise",
        too_long: TooLong = "refuse",
    ):
        self.split, self.processor = split, processor
        self.max_length, self.on_error, self.too_long = max_length, on_error, too_long
        self.rows = FileRows(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at an index, or with `on_error=skip` the next good one.

        Raises:
            DataError: If the row is bad; names file and row.
        """
        skipped: dict[tuple[str, int], str] = {}
        for step in range(len(self)):
            place = (index + step) % len(self)
            number = self.number_of(place)
            try:
                sample = self.make(place)
            except DataError as error:
                message = f"{self.where(place)}: {error}"
                if self.on_error == "raise":
                    raise DataError(message) from error
                skipped[str(self.split.file), number] = message
            else:
                sample.meta["skipped"] = skipped
                return sample
        raise DataError(f"Every row of {self.split.file} is bad; the last one: {message}")

    def number_of(self, index: int) -> int:
        """Return the number, starting at 0, of the file's row behind an index."""
        return int(self.rows.numbers[index])

    def where(self, index: int) -> str:
        """Return the row and file of an index, for error messages."""
        return f"Row {self.number_of(index)} of {self.split.file}"

    def make(self, index: int) -> Sample:
        """Build the sample of an index; raises DataError if its row is bad."""
        row = self.rows[index]
        return self.sample(index, row, *answered_row(row))

    def count_ids(self, index: int) -> int | None:
        """Count the ids of a sample, each image as one; None if the row is bad."""
        try:
            turns, images = answered_row(self.rows[index])
            return len(self.processor.encode(turns, len(images), self.split.template)[0])
        except DataError:
            return None

    def sample(
        self, index: int, row: Any, turns: Sequence[Turn], images: Sequence[str], **meta: Any
    ) -> Sample:
        """Build a sample from the given turns and images of a row."""
        most = self.max_length if self.too_long == "refuse" else None
        ids, labels = self.processor.encode(turns, len(images), self.split.template, most)
        if len(ids) > self.max_length:
            ids, labels = cut(ids, labels, self.max_length, self.processor.image_token_id)
        root, rules, number = self.split.image_root, self.split.images, self.number_of(index)
        return Sample(
            input_ids=ids,
            labels=labels,
            images=[self.processor.transform(open_image(root, name, rules)) for name in images],
            sample_id=number,
            meta={**metadata(row, number), **meta},
        )


def answered_row(row: Any) -> tuple[list[Turn], list[Any]]:
    """Read the turns of a row, in which every question has an answer, and its image names.

    Raises:
        DataError: If an answer is missing or the row cannot be read; see `read_row`.
    """
    turns, images = read_row(row)
    if turns[-1].role != "assistant":
        raise DataError("the last turn has no answer; add it or drop the turn.")
    return turns, images


class Questions(Conversations):
    """Dataset with one prompt per human turn, for generation.

    Earlier turns are shown with their reference answers; the images of later turns are left out.
    `meta` also holds row and turn (starting at 0), prompt and reference.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        answers = np.array([self._answers(row) for row in self.rows])
        self.places = np.repeat(np.arange(len(answers)), answers)
        self.first = np.cumsum(answers) - answers  # place of each row's first question

    def _answers(self, row: Any) -> int:
        try:
            return len(answered_row(row)[0]) // 2
        except DataError:
            return 1  # one index at which `on_error` applies

    def __len__(self) -> int:
        return len(self.places)

    @property
    def lengths(self) -> np.ndarray:
        """Number of words in the conversation of each question."""
        return np.abs(self.rows.lengths)[self.places]

    def number_of(self, index: int) -> int:
        return super().number_of(self.places[index])

    def place_of(self, number: int, turn: int) -> int:
        """Return the index of the question with this `row` and `turn` in `meta`."""
        return int(self.first[list(self.rows.numbers).index(number)]) + turn

    def make(self, index: int) -> Sample:
        place = self.places[index]
        turn, row = index - int(self.first[place]), self.rows[place]
        turns, images = answered_row(row)
        place_images(turns, len(images))
        question, answer = turns[2 * turn : 2 * turn + 2]
        shown = turns[: 2 * turn + 1]
        marks = sum(one.text.count(IMAGE) for one in shown)
        sample = self.sample(
            index,
            row,
            shown,
            images[:marks],
            turn=turn,
            prompt=question.text,
            reference=answer.text,
        )
        meta = {"row": self.number_of(index), **sample.meta}
        return replace(sample, labels=[IGNORE] * len(sample.labels), meta=meta)
