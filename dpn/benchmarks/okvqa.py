"""OKVQA: questions about COCO pictures that need outside knowledge (arXiv 1906.00067)."""

from collections.abc import Sequence
from pathlib import Path

from dpn.benchmarks._short_answers import EVAL_AUG_ZIP, read_questions
from dpn.benchmarks._vqa import annotated, vqa_scores, write_results
from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores

_QUESTIONS = "okvqa/okvqa_val.jsonl"
_ANSWERS = "okvqa/mscoco_val2014_annotations.json"
_IMAGES = "coco-cap/val2014"


class OKVQA(Benchmark):
    """The validation set, as LLaVA-HR asks and scores it: by VQA's own evaluator.

    okvqa_results.json is what that evaluator reads.

    Metrics: accuracy, also of each answer type, and accuracy_by_question_type.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_AUG_ZIP),
        OfficialFile(_ANSWERS, "the testing annotations of okvqa.allenai.org"),
        OfficialFile(_IMAGES, "val2014.zip of cocodataset.org"),
    )

    def questions(self) -> list[Question]:
        """See `Benchmark.questions`."""
        questions = read_questions(self.root / _QUESTIONS, self.root / _IMAGES)
        return annotated(questions, self.root / _QUESTIONS, self.root / _ANSWERS)

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        """See `Benchmark.score`."""
        return vqa_scores(questions, answers)

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        """See `Benchmark.upload`."""
        ids = [question.id for question in self.questions()]
        write_results(folder / "okvqa_results.json", ids, questions, answers)
