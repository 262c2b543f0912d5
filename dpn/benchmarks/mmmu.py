"""MMMU: college exam questions in thirty subjects (arXiv 2311.16502)."""

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

from PIL import Image

from dpn.benchmarks._files import check_same, check_unique, checked, decoded, read_object
from dpn.benchmarks._mmmu import chosen, is_right
from dpn.benchmarks.base import (
    LETTER,
    SHORT,
    Benchmark,
    OfficialFile,
    Question,
    Scores,
    by_category,
    percent,
)
from dpn.common.text import one_line
from dpn.data.batch import DataError

DISCIPLINES = {
    "Art_and_Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health_and_Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities_and_Social_Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech_and_Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_TEXTS = {"id": str, "question": str, "options": str, "question_type": str}
_PICTURE = re.compile(r"<img='.*?'>")


class MMMU(Benchmark):
    """MMMU's validation split, asked as in LLaVA-HR with the first image only.

    The folder `MMMU` holds the files of the Hub data set (`<subject>/validation-*.parquet`) or the
    output of `save_to_disk` of Hugging Face's `datasets`, in one folder or one per subject.

    If an answer to a multiple-choice question matches no option, a random letter is drawn. The same
    happens if several options are images (`<img='...'>`); these are asked without an image.

    Metrics: accuracy overall, per subject and per discipline.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        seed: Seed of the random letters, combined with the question's id.
    """

    files = (
        OfficialFile("MMMU", "the data set MMMU/MMMU of the Hugging Face Hub"),
        OfficialFile("MMMU/answer_dict_val.json", "mmmu of github.com/MMMU-Benchmark/MMMU"),
    )
    max_new_tokens = 16

    def __init__(self, root: Path, seed: int = 0):
        super().__init__(root)
        self.seed = seed

    def questions(self) -> list[Question]:
        folder = self.root / "MMMU"
        path = folder / "answer_dict_val.json"
        truths = read_object(path, {"ground_truth": (str, list)})
        data = _read(folder)
        with _readable(folder):
            texts = list(data.select_columns(list(_TEXTS)))
        rows = [checked(row, _TEXTS, folder, number, "row") for number, row in enumerate(texts, 1)]
        check_unique((row["id"] for row in rows), folder)
        check_same((row["id"] for row in rows), truths, folder, path)
        images = data.select_columns(["image_1"])
        return [
            self._question(row, truths[row["id"]]["ground_truth"], images, number)
            for number, row in enumerate(rows)
        ]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        right = [
            float(answer is not None and self._is_right(question, answer))
            for question, answer in zip(questions, answers, strict=True)
        ]
        groups = by_category(questions, right)
        metrics = {"accuracy": percent(right)}
        metrics |= {f"accuracy/{name}": percent(values) for name, values in groups.items()}
        for name, subjects in DISCIPLINES.items():
            values = [value for subject in subjects for value in groups.get(subject, [])]
            if values:
                metrics[f"accuracy/{name}"] = percent(values)
        return Scores(metrics, list(right))

    def _question(
        self, row: dict[str, str], truth: str | list[str], images: Any, number: int
    ) -> Question:
        place = f"{self.root / 'MMMU'}, question {row['id']}"
        subject = "_".join(row["id"].split("_")[1:-1])
        truths = truth if isinstance(truth, list) else [truth]
        if not all(isinstance(one, str) for one in truths):
            raise DataError(f"{place}: its correct answers must be texts; download them again.")
        image = partial(_picture, images, number, place)
        if row["question_type"] != "multiple-choice":
            return Question(row["id"], row["question"] + SHORT, (image,), truths, subject)
        options = dict(zip(ascii_uppercase, _options(row["options"], place), strict=False))
        lines = "".join(f"({letter}) {text}\n" for letter, text in options.items())
        guess = len(_PICTURE.findall(row["options"])) > 1
        return Question(
            row["id"],
            f"{row['question']}\n{lines}{LETTER}",
            () if guess else (image,),
            truths,
            subject,
            {"options": options, "guess": guess},
        )

    def _is_right(self, question: Question, answer: str) -> bool:
        options = question.meta.get("options")
        if options is None:
            return is_right(answer, question.reference)
        letter = None if question.meta["guess"] else chosen(answer, options)
        if letter is None:
            letter = Random(f"{self.seed}/{question.id}").choice(list(options))
        return letter in question.reference


def _read(folder: Path) -> Any:
    """Read the rows of all subjects, in alphabetical order of the subjects."""
    from datasets import Dataset, concatenate_datasets, load_from_disk
    from datasets import Image as ImageColumn

    tables = sorted(folder.glob("*/validation-*.parquet"))
    saved = [path.parent for path in folder.rglob("state.json")]
    saved = sorted(path for path in saved if path.name not in ("dev", "test"))
    if not tables and not saved:
        raise DataError(
            f"{folder} holds no <subject>/validation-*.parquet and nothing that save_to_disk wrote;"
            " put the data set MMMU/MMMU of the Hugging Face Hub there."
        )
    with _readable(folder):
        if tables:
            data = Dataset.from_parquet([str(path) for path in tables])
        else:
            data = concatenate_datasets([load_from_disk(str(path)) for path in saved])
        data = data.select_columns([*_TEXTS, "image_1"])
        return data.cast_column("image_1", ImageColumn(decode=False))


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn whatever arrow, datasets and the system raise for a damaged file into a DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{folder} cannot be read ({one_line(str(error)) or type(error).__name__}); download"
            " the data set again."
        ) from error


def _options(text: str, place: str) -> list[str]:
    """Parse the options, which the table holds as the text of a Python list."""
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # all raised by bad texts
        options = None
    if not isinstance(options, list) or not options or not all(isinstance(o, str) for o in options):
        raise DataError(f"{place}: field 'options' is {text!r:.60}; it must be the text of a list.")
    if len(options) > len(ascii_uppercase):
        raise DataError(
            f"{place}: field 'options' has {len(options)} entries; there are 26 letters."
        )
    return options


def _picture(images: Any, number: int, place: str) -> Image.Image:
    with _readable(Path(place)):
        data = (images[number]["image_1"] or {}).get("bytes") or b""
    return decoded(data, place)
