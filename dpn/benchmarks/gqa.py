"""GQA: compositional questions about real scenes (arXiv 1902.09506)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpn.benchmarks._files import check_same, check_unique, read_object
from dpn.benchmarks._short_answers import accuracy, read_questions
from dpn.benchmarks.base import EVAL_ZIP, Benchmark, OfficialFile, Question, Scores
from dpn.common.files import write_json
from dpn.data.batch import DataError

_QUESTIONS = "gqa/llava_gqa_testdev_balanced.jsonl"
_ANSWERS = "gqa/data/testdev_balanced_questions.json"
_SITE = "the download page of cs.stanford.edu/people/dorarad/gqa"


class GQA(Benchmark):
    """GQA's balanced test-dev set.

    As in LLaVA, an answer is correct if it equals the reference after lower-casing it and removing
    full stops at its end. testdev_balanced_predictions.json is for GQA's own `eval.py`.

    Metrics: accuracy of all, binary and open questions; none without the file of answers.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_ZIP),
        OfficialFile(_ANSWERS, f"the questions of {_SITE}"),
        OfficialFile("gqa/data/images", f"the images of {_SITE}"),
    )

    def questions(self) -> list[Question]:
        """Return all questions, without references if the file of answers is missing."""
        path = self.root / _ANSWERS
        questions = read_questions(self.root / _QUESTIONS, self.root / "gqa" / "data" / "images")
        if not path.exists():
            return questions
        rows = read_object(path, {"answer": str, "types": dict})
        check_unique((question.id for question in questions), self.root / _QUESTIONS)
        answered = [_answered(question, rows, path) for question in questions]
        # GQA's own eval.py demands an answer to every question, too.
        check_same((str(question.id) for question in questions), rows, self.root / _QUESTIONS, path)
        return answered

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return accuracy(questions, answers, lambda answer, right: prediction(answer) == right)

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        rows = [
            {"questionId": question.id, "prediction": prediction(answer or "")}
            for question, answer in zip(questions, answers, strict=True)
        ]
        write_json(folder / "testdev_balanced_predictions.json", rows)


def prediction(answer: str) -> str:
    """Convert an answer like LLaVA's `convert_gqa_for_eval.py`."""
    return answer.rstrip(".").lower()


def _answered(question: Question, rows: dict[str, dict[str, Any]], path: Path) -> Question:
    row = rows.get(str(question.id))
    if row is None:
        raise DataError(
            f"{path} has no question {question.id}; download it and {_QUESTIONS} again."
        )
    if not isinstance(row["types"].get("structural"), str):
        raise DataError(
            f"{path}, entry {str(question.id)!r}: field 'types' must hold 'structural'."
        )
    category = "open" if row["types"]["structural"] == "query" else "binary"
    return replace(question, reference=row["answer"], category=category)
