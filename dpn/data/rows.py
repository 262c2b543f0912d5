"""Rows in LLaVA's format to Samples: whole conversations for training, single questions for
generation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from dpn.data.base import OnError, Split
from dpn.data.batch import IGNORE, DataError, Sample
from dpn.data.conversation import IMAGE, Turn, place_images, read_turns
from dpn.data.images import open_image


def read_rows(split: Split) -> list[Any]:
    """The rows of a split's file.

    Raises:
        DataError: if the file is missing or holds no JSON array.
    """
    if not split.file.is_file():
        raise DataError(f"The data file {split.file} does not exist; check the path in `data`.")
    try:
        rows = json.loads(split.file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"The data file {split.file} is no valid JSON: {error}.") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"The data file {split.file} must hold a JSON array of at least one row.")
    return rows[: split.rows]


def image_names(row: Mapping[str, Any]) -> list[str]:
    """The images of a row: none, one path, or a list of paths."""
    image = row.get("image")
    if image is None or image == "":
        return []
    return list(image) if isinstance(image, list) else [image]


class Conversations(Dataset[Sample]):
    """Every row as one training sample.

    Args:
        split: which rows.
        processor: turns text and images into ids and pixels.
        max_length: most ids a sample may have.
        on_error: `raise`, or `skip`: a bad row's place is taken by the next good one, whatever
            process loads it; the sample's `meta["skipped"]` says which rows were bad and why.
    """

    def __init__(
        self, split: Split, processor: Any, max_length: int = 2048, on_error: OnError = "raise"
    ):
        self.split, self.processor = split, processor
        self.max_length, self.on_error = max_length, on_error
        self.rows = read_rows(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a place, or with `on_error=skip` the next good one.

        Raises:
            DataError: naming file and row.
        """
        skipped: dict[tuple[str, int], str] = {}
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                sample = self.make(place)
            except DataError as error:
                message = f"Row {self.row_of(place)} of {self.split.file}: {error}"
                if self.on_error == "raise":
                    raise DataError(message) from error
                skipped[str(self.split.file), self.row_of(place)] = message
            else:
                sample.meta["skipped"] = skipped
                return sample
        raise DataError(f"Every row of {self.split.file} is bad; the last one: {message}")

    def row_of(self, index: int) -> int:
        """Number of the row, from 0, that a place comes from."""
        return index

    def make(self, index: int) -> Sample:
        """The sample of one place, or a DataError."""
        return self.sample(index, self.turns(index), image_names(self.rows[index]))

    def turns(self, row: int) -> list[Turn]:
        """The conversation of a row, every question answered."""
        if not isinstance(self.rows[row], Mapping):
            raise DataError("it is no mapping with `image` and `conversations`.")
        turns = read_turns(self.rows[row].get("conversations"))
        if turns[-1].role != "assistant":
            raise DataError("the last turn has no answer; add it or drop the turn.")
        return turns

    def sample(self, row: int, turns: Sequence[Turn], images: Sequence[str], **meta: Any) -> Sample:
        """Ids, labels and pixels of turns and images of a row."""
        content = self.rows[row]
        ids, labels = self.processor.encode(
            turns, len(images), self.split.template, self.max_length
        )
        root = self.split.image_root
        return Sample(
            input_ids=ids,
            labels=labels,
            images=[self.processor.transform(open_image(root, name)) for name in images],
            sample_id=row,
            meta={
                "id": str(content.get("id", row)),
                "family": content.get("family"),
                "difficulty": content.get("difficulty"),
                **meta,
            },
        )


class Questions(Conversations):
    """Every human turn as one prompt for generation; earlier turns hold their true answers.

    `meta` adds turn (from 0), question and answer. The images of later turns are not part of the
    prompt.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.places = [
            (row, turn) for row in range(len(self.rows)) for turn in range(self._answers(row))
        ]

    def _answers(self, row: int) -> int:
        try:
            return len(self.turns(row)) // 2
        except DataError:
            return 1  # one place at which `on_error` applies

    def __len__(self) -> int:
        return len(self.places)

    def row_of(self, index: int) -> int:
        """See `Conversations.row_of`."""
        return self.places[index][0]

    def make(self, index: int) -> Sample:
        """See `Conversations.make`."""
        row, turn = self.places[index]
        turns, images = self.turns(row), image_names(self.rows[row])
        place_images(turns, len(images))
        question, answer = turns[2 * turn : 2 * turn + 2]
        shown = turns[: 2 * turn + 1]
        marks = sum(one.text.count(IMAGE) for one in shown)
        sample = self.sample(
            row, shown, images[:marks], turn=turn, question=question.text, answer=answer.text
        )
        return replace(sample, labels=[IGNORE] * len(sample.labels))
