"""VQAv2: questions about COCO images, ten answers each (arXiv 1612.00837)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dpn.benchmarks._answers import uploaded
from dpn.benchmarks._files import ID, Fields, check_unique, image_of, read_array, read_jsonl
from dpn.benchmarks._short_answers import files_of, read_questions
from dpn.benchmarks._vqa import annotated, vqa_scores, write_results
from dpn.benchmarks.base import EVAL_ZIP, SHORT, Benchmark, OfficialFile, Question, Scores

_ALL_TEST = "vqav2/llava_vqav2_mscoco_test2015.jsonl"
_TEST_DEV = "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl"
_VAL = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
_VAL_ANSWERS = "vqav2/v2_mscoco_val2014_annotations.json"
_SITE = "the download page of visualqa.org"
_FILES = {
    "test-dev": (
        OfficialFile(_TEST_DEV, EVAL_ZIP),
        OfficialFile(_ALL_TEST, EVAL_ZIP),
        OfficialFile("vqav2/test2015", "test2015.zip of cocodataset.org"),
    ),
    "val": (
        OfficialFile(_VAL, _SITE),
        OfficialFile(_VAL_ANSWERS, _SITE),
        OfficialFile("vqav2/val2014", "val2014.zip of cocodataset.org"),
    ),
}


class VQAv2(Benchmark):
    """VQAv2: short answers, scored by how many of ten people gave them.

    answers_upload.json is for the server (eval.ai, challenge 830): all questions of test2015, empty
    if not asked. Answers are normalised as EvalAI does and scored like VQA's own evaluator.

    Metrics: accuracy, overall and per answer type, and accuracy_by_question_type; only for split
    val.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        split: `test-dev`, which the server scores, or `val`.
    """

    def __init__(self, root: Path, split: Literal["test-dev", "val"] = "test-dev"):
        super().__init__(root)
        self.split, self.files = split, files_of(split, _FILES)

    def questions(self) -> list[Question]:
        if self.split == "test-dev":
            path = self.root / _TEST_DEV
            asked = read_questions(path, self.root / "vqav2" / "test2015")
            check_unique((question.id for question in asked), path)
            return asked
        fields: Fields = {"question_id": ID, "image_id": int, "question": str}
        images = self.root / "vqav2" / "val2014"
        questions = [
            Question(
                row["question_id"],
                row["question"] + SHORT,
                (image_of(images, f"COCO_val2014_{row['image_id']:012}.jpg"),),
            )
            for row in read_array(self.root / _VAL, fields, "questions")
        ]
        return annotated(questions, self.root / _VAL, self.root / _VAL_ANSWERS)

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return vqa_scores(questions, uploaded(answers))

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        if self.split == "test-dev":
            rows = read_jsonl(self.root / _ALL_TEST, {"question_id": ID})
        else:
            rows = read_array(self.root / _VAL, {"question_id": ID}, "questions")
        ids = [row["question_id"] for row in rows]
        write_results(folder / "answers_upload.json", ids, questions, uploaded(answers))
