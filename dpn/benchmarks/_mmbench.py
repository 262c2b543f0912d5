"""Common base of MMBench and MMBench-CN: table, rounds, upload and local score."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from dpn.benchmarks._files import check_unique, decoded, read_table
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores, by_category, percent
from dpn.common.files import atomic_path
from dpn.data.batch import DataError
from dpn.data.images import CorruptImageError

LETTERS = "ABCD"
#: Copies of a question with rotated options have its index plus a multiple of this.
COPIES = 10**6
#: Empty cells: what pandas reads as NaN (LLaVA reads the table with pandas), and `nan` and `none`
#: in upper or lower case. The others match exactly, since `Na` is sodium.
_NOTHING = re.compile(
    r"|#N/A|#N/A N/A|#NA|-?1\.#(IND|QNAN)|-?(NaN|nan)|<NA>|N/A|NA|NULL|n/a|null|(?i:nan|none)"
)
_COLUMNS = ("index", "question", "hint", *LETTERS, "image", "l2-category")
_NOT_UPLOADED = ("hint", "category", "source", "image", "comment", "l2-category")
#: Forms in which a letter can appear as a word of an answer; the first that matches counts.
_FORMS = ("X", "X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X).")


class MMBenchTable(Benchmark):
    """Base class for benchmarks with a table in MMBench's format.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        split: Name of the table without `.tsv`.
        all_rounds: Whether to ask each question once per rotation of its options.
    """

    folder: ClassVar[str]
    suffix: ClassVar[str]
    max_new_tokens = 1024

    def __init__(self, root: Path, split: str, all_rounds: bool):
        super().__init__(root)
        self.split, self.all_rounds = split, all_rounds
        where = "README.md of github.com/open-compass/MMBench"
        self.files = (OfficialFile(f"{self.folder}/{split}.tsv", where),)

    def questions(self) -> list[Question]:
        rows = self._rows()
        questions = [question for n, row in enumerate(rows, 1) for question in self._ask(row, n)]
        check_unique((int(row["index"]) for row in rows), self._path)
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        samples = [
            _worth(question, answer) for question, answer in zip(questions, answers, strict=True)
        ]
        known = [(q, s) for q, s in zip(questions, samples, strict=True) if s is not None]
        if not known:
            return Scores({}, samples)
        copies: dict[int, list[tuple[Question, float]]] = {}
        for question, sample in known:
            copies.setdefault(question.meta["index"] % COPIES, []).append((question, sample))
        first = [group[0][0] for group in copies.values()]
        whole = [min(sample for _, sample in group) for group in copies.values()]
        metrics = {"accuracy": percent(whole), "vanilla_accuracy": percent([s for _, s in known])}
        groups = by_category(first, whole)
        metrics |= {f"accuracy/{name}": percent(values) for name, values in groups.items()}
        return Scores(metrics, samples)

    def answer_fields(self, question: Question) -> dict[str, Any]:
        """Return the options as shown and their letters in the table."""
        return {key: question.meta[key] for key in ("round_id", "options", "option_char")}

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write the table for the server: all rows, with the answers to the unrotated options."""
        said = {
            question.meta["index"]: answer
            for question, answer in zip(questions, answers, strict=True)
            if question.meta["round_id"] == 0
        }
        rows = self._rows()
        columns = [name for name in rows[0] if name not in _NOT_UPLOADED] if rows else []
        columns.insert(6, "prediction")
        lines = (
            {name: None if _empty(cell) else cell for name, cell in row.items()}
            | {"index": int(row["index"]), "prediction": said.get(int(row["index"]))}
            for row in rows
        )
        _write_xlsx(folder / f"{self.split}.xlsx", columns, lines)

    @property
    def _path(self) -> Path:
        return self.root / self.folder / f"{self.split}.tsv"

    def _rows(self) -> list[dict[str, Any]]:
        return read_table(self._path, dict.fromkeys(_COLUMNS, str))

    def _ask(self, row: Mapping[str, str], number: int) -> list[Question]:
        place = f"{self._path}, row {number}"
        if not re.fullmatch(r"\d{1,18}", row["index"]):
            raise DataError(f"{place}: field 'index' is {row['index']!r}; it must be a number.")
        options = list(takewhile(lambda text: not _empty(text), (row[name] for name in LETTERS)))
        letters = list(LETTERS[: len(options)])
        answer = None if _empty(row.get("answer") or "") else row["answer"]
        if answer is not None and answer not in letters:
            raise DataError(
                f"{place}: field 'answer' is {answer!r}; it must be one of {', '.join(letters)}."
            )
        hint = "" if _empty(row["hint"]) else row["hint"] + "\n"
        image = partial(_picture, row["image"], place)
        questions = []
        for turn in range(len(options) if self.all_rounds else 1):
            shown = options[turn:] + options[:turn]
            origin = letters[turn:] + letters[:turn]
            lines = [f"\n{letter}. {text}" for letter, text in zip(letters, shown, strict=True)]
            prompt = hint + row["question"] + "".join(lines) + self.suffix
            right = None if answer is None else letters[origin.index(answer)]
            index = int(row["index"])
            meta = {"index": index, "round_id": turn, "options": shown, "option_char": origin}
            questions.append(Question(index, prompt, (image,), right, row["l2-category"], meta))
        return questions


def said_option(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer names, found without a judge model.

    A word that is a letter from A to E, alone or with punctuation, counts if no other letter has
    the same form; a lone `A` among more than three words does not count. Otherwise, an option
    counts if it is the only one whose text appears in the answer.
    """
    words = answer.split()
    for form in _FORMS:
        said = [letter for letter in "ABCDE" if form.replace("X", letter) in words]
        if len(said) == 1 and not (form == "X" and said == ["A"] and len(words) > 3):
            return said[0]
    text = answer.lower()
    held = [
        letter for letter, option in zip(LETTERS, options, strict=False) if option.lower() in text
    ]
    return held[0] if len(held) == 1 else None


def _worth(question: Question, answer: str | None) -> float | None:
    if question.reference is None:
        return None
    if answer is None:
        return 0.0
    return float(said_option(answer, question.meta["options"]) == question.reference)


def _empty(cell: str) -> bool:
    return _NOTHING.fullmatch(cell) is not None


def _picture(text: str, place: str) -> Image.Image:
    try:
        data = base64.b64decode(text)
    except ValueError as error:  # not base64, or not even ASCII
        raise CorruptImageError(f"{place}: field 'image' is not valid base64 ({error}).") from error
    return decoded(data, place)


def _write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a workbook with one sheet; texts that look like formulas stay texts."""
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook()
    sheet = book.active
    for cells in (list(columns), *([row[name] for name in columns] for row in rows)):
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", c) if isinstance(c, str) else c for c in cells])
    for cells in sheet.iter_rows():
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"
    with atomic_path(path) as temporary:
        book.save(temporary)
