"""OCR-VQA: questions about book covers (ICDAR 2019)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpn.benchmarks._short_answers import EVAL_AUG_ZIP, accuracy, read_questions
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores

_QUESTIONS = "ocrvqa/ocrvqa_test.jsonl"
_IMAGES = "ocrvqa/images"


class OCRVQA(Benchmark):
    """OCR-VQA's test set, asked and scored as in LLaVA-HR.

    An answer is correct if it equals the reference, ignoring case and surrounding whitespace. Lines
    with the same id and text all use the reference of the last one.

    Metrics: accuracy.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_AUG_ZIP),
        OfficialFile(_IMAGES, "the OCR-VQA page of ocr-vqa.github.io"),
    )

    def questions(self) -> list[Question]:
        questions = read_questions(self.root / _QUESTIONS, self.root / _IMAGES, "answer")
        references = {f"{q.id}{q.prompt}": q.reference for q in questions}
        return [replace(q, reference=references[f"{q.id}{q.prompt}"]) for q in questions]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return accuracy(questions, answers, lambda answer, right: _bare(answer) == _bare(right))


def _bare(text: str) -> str:
    return text.strip().lower()
