"""What every benchmark is: official files -> questions -> answers -> official files and scores."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from dpn.common.files import write_rows

#: Where LLaVA's question files come from.
EVAL_ZIP = "eval.zip, linked in docs/Evaluation.md of github.com/haotian-liu/LLaVA"
#: Ends a prompt that wants few words.
SHORT = "\nAnswer the question using a single word or phrase."
#: Ends a prompt that wants an option.
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class OfficialFile:
    """A file, or a folder, that a benchmark reads.

    Attributes:
        path: relative to the data root.
        where: where to get it.
    """

    path: str
    where: str


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        id: the official one; not always unique.
        prompt: the official words with their suffix, without `<image>` marks, which come first, and
            without the conversation template.
        images: each opens one; called when the question is asked.
        reference: what is right, as far as the files tell; goes into JSON.
        category: what scores are grouped by, if anything.
        meta: what else the answer files or the scores need.
    """

    id: int | str
    prompt: str
    images: tuple[Callable[[], Image.Image], ...] = ()
    reference: Any = None
    category: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What answers are worth.

    Attributes:
        metrics: numbers by name, in the unit in which papers report them, percent unless the
            benchmark says otherwise; empty if a server or a judge has to score.
        samples: of each question from 0 to 1, None where nothing local can tell.
    """

    metrics: dict[str, float]
    samples: list[float | None]


class Benchmark:
    """One benchmark; subclasses say which files, questions and scores.

    An answer of None stands for a question that was not answered: it is wrong.

    Args:
        root: folder of all benchmarks, laid out as LLaVA's `playground/data/eval`.

    Attributes:
        files: what has to be there; a benchmark with splits sets those of its split.
        headline: the metric that papers report.
        max_new_tokens: upper limit of an answer in LLaVA's evaluation.
    """

    files: tuple[OfficialFile, ...] = ()
    headline: ClassVar[str] = "accuracy"
    max_new_tokens: ClassVar[int] = 128

    def __init__(self, root: Path):
        self.root = root

    @property
    def name(self) -> str:
        """As in `benchmarks=[...]`."""
        return type(self).__module__.rpartition(".")[2]

    def missing(self) -> list[OfficialFile]:
        """Those of the files that are not there."""
        return [file for file in self.files if not (self.root / file.path).exists()]

    def questions(self) -> list[Question]:
        """All questions in the order of the official file.

        Raises:
            DataError: naming file, line and field of a row that can not be read.
        """
        raise TypeError(f"{type(self).__name__} does not say what it asks.")

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        """What answers are worth.

        Args:
            questions: some of `questions()`, in that order.
            answers: one for each.
            folder: of this benchmark's results; files that came back from a judge are found there.
        """
        raise TypeError(f"{type(self).__name__} does not say what answers are worth.")

    def write(
        self,
        questions: Sequence[Question],
        answers: Sequence[str | None],
        folder: Path,
        model_id: str,
    ) -> None:
        """Write answers.jsonl in LLaVA's format, and what a server or a judge wants to see.

        Args:
            questions: some of `questions()`, in that order.
            answers: one for each; questions without answer are left out.
            folder: of this benchmark's results.
            model_id: names the model in the file.
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
        """Further fields of a question's row in answers.jsonl; default: none."""
        return {}

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """Write further files, for a server or a judge; default: none."""


def percent(scores: Sequence[float]) -> float:
    """Mean in percent; of no scores NaN."""
    return 100 * sum(scores) / len(scores) if scores else float("nan")


def by_category(questions: Sequence[Question], scores: Sequence[float]) -> dict[str, list[float]]:
    """Scores of each category, in the order in which categories first come."""
    groups: dict[str, list[float]] = {}
    for question, score in zip(questions, scores, strict=True):
        groups.setdefault(str(question.category), []).append(score)
    return groups


def _digest(*words: str) -> str:
    """22 letters that the same answer of the same model always gets."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:22]
