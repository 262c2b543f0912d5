"""VizWiz: questions by blind people about photos they took (arXiv 1802.08218)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dpn.benchmarks._answers import uploaded
from dpn.benchmarks._files import check_unique, image_of, read_array
from dpn.benchmarks._short_answers import accuracy, files_of, read_questions
from dpn.benchmarks._vqa import people_said, soft_accuracy
from dpn.benchmarks.base import EVAL_ZIP, SHORT, Benchmark, OfficialFile, Question, Scores
from dpn.common.files import write_json

_SITE = "the VQA page of vizwiz.org"
_FILES = {
    "test": (
        OfficialFile("vizwiz/llava_test.jsonl", EVAL_ZIP),
        OfficialFile("vizwiz/test", f"test.zip of {_SITE}"),
    ),
    "val": (
        OfficialFile("vizwiz/val.json", f"Annotations.zip of {_SITE}"),
        OfficialFile("vizwiz/val", f"val.zip of {_SITE}"),
    ),
}
_SUFFIX = "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT


class VizWiz(Benchmark):
    """VizWiz: short answers or `Unanswerable`, scored by how many of ten people gave them.

    answers_upload.json is for the server (eval.ai, challenge 1911): all images of the split, with
    an empty answer if not asked. Answers are normalised as EvalAI does and compared with the
    unchanged references, as in VizWiz's evaluator.

    Metrics: accuracy, overall and per answer type; only for split val.

    Args:
        root: Root folder of all benchmarks, see `Benchmark`.
        split: `test`, which the server scores, or `val`.
    """

    def __init__(self, root: Path, split: Literal["test", "val"] = "test"):
        super().__init__(root)
        self.split, self.files = split, files_of(split, _FILES)

    def questions(self) -> list[Question]:
        folder = self.root / "vizwiz"
        path = folder / ("llava_test.jsonl" if self.split == "test" else "val.json")
        asked = read_questions(path, folder / "test") if self.split == "test" else self._val(path)
        check_unique((question.id for question in asked), path)
        return asked

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return accuracy(questions, uploaded(answers), soft_accuracy)

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        said = {
            question.id: answer
            for question, answer in zip(questions, uploaded(answers), strict=True)
        }
        rows = [
            {"image": question.meta["image"], "answer": said.get(question.id) or ""}
            for question in self.questions()
        ]
        write_json(folder / "answers_upload.json", rows)

    def _val(self, path: Path) -> list[Question]:
        """Read the questions of split val, with what people said."""
        fields = {"image": str, "question": str, "answers": list, "answer_type": str}
        return [
            Question(
                id=row["image"],
                prompt=row["question"] + _SUFFIX,
                images=(image_of(path.with_name("val"), row["image"]),),
                reference=people_said(row, f"{path}, entry {number}"),
                category=row["answer_type"],
                meta={"image": row["image"]},
            )
            for number, row in enumerate(read_array(path, fields), 1)
        ]
