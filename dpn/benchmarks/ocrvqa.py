"""OCR-VQA: questions about book covers (ICDAR 2019)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpn.benchmarks._short_answers import EVAL_AUG_ZIP, accuracy, read_questions
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores

_QUESTIONS = "ocrvqa/ocrvqa_test.jsonl"
_IMAGES = "ocrvqa/images"


class OCRVQA(Benchmark):
    """The test set, as LLaVA-HR asks and scores it.

    An answer is right if it is the reference but for case and blanks around it. Rows of the same id
    and text share the last one's reference.

    Metrics: accuracy.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_AUG_ZIP),
        OfficialFile(_IMAGES, "the OCR-VQA page of ocr-vqa.github.io"),
    )

    def questions(self) -> list[Question]:
        """See `Benchmark.questions`."""
        questions = read_questions(self.root / _QUESTIONS, self.root / _IMAGES, "answer")
        references = {f"{q.id}{q.prompt}": q.reference for q in questions}
        return [replace(q, reference=references[f"{q.id}{q.prompt}"]) for q in questions]

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        """See `Benchmark.score`."""
        return accuracy(questions, answers, lambda answer, right: _bare(answer) == _bare(right))


def _bare(text: str) -> str:
    return text.strip().lower()
