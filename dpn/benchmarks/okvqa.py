"""OKVQA: questions about COCO images that need outside knowledge (arXiv 1906.00067)."""

from collections.abc import Sequence
from pathlib import Path

from dpn.benchmarks._short_answers import EVAL_AUG_ZIP, read_questions
from dpn.benchmarks._vqa import annotated, vqa_scores, write_results
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores

_QUESTIONS = "okvqa/okvqa_val.jsonl"
_ANSWERS = "okvqa/mscoco_val2014_annotations.json"
_IMAGES = "coco-cap/val2014"


class OKVQA(Benchmark):
    """OKVQA's validation set, asked as in LLaVA-HR and scored like VQA's evaluator.

    okvqa_results.json is for that evaluator.

    Metrics: accuracy, overall and per answer type, and accuracy_by_question_type.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_AUG_ZIP),
        OfficialFile(_ANSWERS, "the testing annotations of okvqa.allenai.org"),
        OfficialFile(_IMAGES, "val2014.zip of cocodataset.org"),
    )

    def questions(self) -> list[Question]:
        questions = read_questions(self.root / _QUESTIONS, self.root / _IMAGES)
        return annotated(questions, self.root / _QUESTIONS, self.root / _ANSWERS)

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return vqa_scores(questions, answers)

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        ids = [question.id for question in self.questions()]
        write_results(folder / "okvqa_results.json", ids, questions, answers)
