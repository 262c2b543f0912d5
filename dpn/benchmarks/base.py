"""Base class of benchmarks: official files -> questions -> answers -> result files and scores."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from dpn.common.files import write_rows

#: Source of LLaVA's question files.
EVAL_ZIP = "eval.zip, linked in docs/Evaluation.md of github.com/haotian-liu/LLaVA"
#: End of prompts for short answers.
SHORT = "\nAnswer the question using a single word or phrase."
#: End of multiple-choice prompts.
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class OfficialFile:
    """A file or folder that a benchmark reads.

    Attributes:
        path: Path relative to the data root.
        where: Download source, for error messages.
    """

    path: str
    where: str


@dataclass(frozen=True)
class Question:
    """One prompt of a benchmark.

    Attributes:
        id: Official id; not always unique.
        prompt: Official text including the suffix, without the conversation template and without
            `<image>` marks, which are put before it.
        images: Functions that each open one image; called when the question is asked.
        reference: Correct answer as a JSON value, if the files contain it.
        category: Category that scores are grouped by, if any.
        meta: Further values for answer files and scores.
    """

    id: int | str
    prompt: str
    images: tuple[Callable[[], Image.Image], ...] = ()
    reference: Any = None
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores of a benchmark's answers.

    Attributes:
        metrics: Values by name in the unit that papers report, percent unless the benchmark says
            otherwise; empty if a server or a judge has to score.
        samples: Score of each question from 0 to 1; None where it is not known locally.
    """

    metrics: dict[str, float]
    samples: list[float | None]


class Benchmark:
    """Base class of a benchmark; subclasses define its files, questions and scores.

    An answer of None means that the question was not answered, which counts as wrong.

    Args:
        root: Root folder of all benchmarks, laid out like LLaVA's `playground/data/eval`.

    Attributes:
        files: Required files; a benchmark with splits sets those of its split.
        headline: Metric that papers report.
        max_new_tokens: Maximum length of an answer in LLaVA's evaluation.
    """

    files: tuple[OfficialFile, ...] = ()
    headline: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 128

    def __init__(self, root: Path):
        self.root = root

    @property
    def name(self) -> str:
        """Name of the benchmark as in `benchmarks=[...]`."""
        return type(self).__module__.rpartition(".")[2]

    def missing(self) -> list[OfficialFile]:
        """Return the required files that do not exist."""
        return [file for file in self.files if not (self.root / file.path).exists()]

    def questions(self) -> list[Question]:
        """Return all questions in the order of the official file.

        Raises:
            DataError: If a file is invalid; names file, line and field.
        """
        raise TypeError(f"{type(self).__name__} must define `questions`.")

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        """Score answers.

        Args:
            questions: Questions from `questions()`, all or some, in the same order.
            answers: One answer per question.
            folder: Result folder of this benchmark, where files from a judge are looked up.
        """
        raise TypeError(f"{type(self).__name__} must define `score`.")

    def write(
        self,
        questions: Sequence[Question],
        answers: Sequence[str | None],
        folder: Path,
        model_id: str,
    ) -> None:
        """Write answers.jsonl in LLaVA's format, and the files for a server or a judge.

        Args:
            questions: Questions from `questions()`, all or some, in the same order.
            answers: One answer per question; questions without an answer are left out.
            folder: Result folder of this benchmark.
            model_id: Name of the model in the file.
        """
        rows: list[dict[str, Any]] = [
            {
                "question_id": question.id,
                "prompt": question.prompt,
                "text": answer,
                "answer_id": _digest(model_id, str(number), answer),
                "model_id": model_id,
                "metadata": {},
                **self.answer_fields(question),
            }
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
            if answer is not None
        ]
        write_rows(folder / "answers.jsonl", rows)
        self.upload(questions, answers, folder)

    def answer_fields(self, question: Question) -> dict[str, Any]:
        """Return additional fields for a question in answers.jsonl; none by default."""
        return {}

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write additional files for a server or a judge; none by default."""


def percent(scores: Sequence[float]) -> float:
    """Return the mean in percent; NaN without scores."""
    return 100 * sum(scores) / len(scores) if scores else float("nan")


def by_category(questions: Sequence[Question], scores: Sequence[float]) -> dict[str, list[float]]:
    """Group scores by category, in order of first appearance."""
    groups: dict[str, list[float]] = {}
    for question, score in zip(questions, scores, strict=True):
        groups.setdefault(str(question.category), []).append(score)
    return groups


def _digest(*words: str) -> str:
    """Return 22 hex digits that depend only on the words."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:22]
