"""GQA: compositional questions about real scenes (arXiv 1902.09506)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpn.benchmarks._files import read_object
from dpn.benchmarks._short_answers import accuracy, read_questions
from dpn.benchmarks.base import EVAL_ZIP, Benchmark, OfficialFile, Question, Scores
from dpn.common.files import write_json
from dpn.data.batch import DataError

_QUESTIONS = "gqa/llava_gqa_testdev_balanced.jsonl"
_ANSWERS = "gqa/data/testdev_balanced_questions.json"
_SITE = "the download page of cs.stanford.edu/people/dorarad/gqa"


class GQA(Benchmark):
    """The balanced test-dev set.

    As in LLaVA, an answer is right if it is the reference once it is lower case and has lost full
    stops at its end. testdev_balanced_predictions.json is what GQA's own `eval.py` reads.

    Metrics: accuracy of all, of binary and of open questions; none without the answers' file.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_ZIP),
        OfficialFile(_ANSWERS, f"the questions of {_SITE}"),
        OfficialFile("gqa/data/images", f"the images of {_SITE}"),
    )

    def questions(self) -> list[Question]:
        """See `Benchmark.questions`; without references if the answers' file is missing."""
        path = self.root / _ANSWERS
        questions = read_questions(self.root / _QUESTIONS, self.root / "gqa" / "data" / "images")
        if not path.exists():
            return questions
        rows = read_object(path, {"answer": str, "types": dict})
        return [_answered(question, rows, path) for question in questions]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        """See `Benchmark.score`."""
        return accuracy(questions, answers, lambda answer, right: prediction(answer) == right)

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """See `Benchmark.upload`."""
        rows = [
            {"questionId": question.id, "prediction": prediction(answer or "")}
            for question, answer in zip(questions, answers, strict=True)
        ]
        write_json(folder / "testdev_balanced_predictions.json", rows)


def prediction(answer: str) -> str:
    """An answer as LLaVA's `convert_gqa_for_eval.py` hands it in."""
    return answer.rstrip(".").lower()


def _answered(question: Question, rows: dict[str, dict[str, Any]], path: Path) -> Question:
    row = rows.get(str(question.id))
    if row is None:
        raise DataError(f"{path} has no question {question.id}; get it and {_QUESTIONS} again.")
    if not isinstance(row["types"].get("structural"), str):
        raise DataError(
            f"{path}, entry {str(question.id)!r}: field 'types' must hold 'structural'."
        )
    category = "open" if row["types"]["structural"] == "query" else "binary"
    return replace(question, reference=row["answer"], category=category)
