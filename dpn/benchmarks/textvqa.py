"""TextVQA: questions about text in images (arXiv 1904.08920)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpn.benchmarks._answers import evalai
from dpn.benchmarks._files import read_array
from dpn.benchmarks._short_answers import accuracy, read_questions
from dpn.benchmarks._vqa import soft_accuracy
from dpn.benchmarks.base import EVAL_ZIP, Benchmark, OfficialFile, Question, Scores
from dpn.data.batch import DataError

_QUESTIONS = "textvqa/llava_textvqa_val_v051_ocr.jsonl"
_ANSWERS = "textvqa/TextVQA_0.5.1_val.json"
_SITE = "the dataset page of textvqa.org"
_HINT = "Reference OCR token:"


class TextVQA(Benchmark):
    """TextVQA's validation set, version 0.5.1; prompts include words found by an OCR system.

    An answer is scored by how many of ten people gave it, after normalising all as EvalAI does.
    References are looked up by image and question; the question is the first line of the prompt, or
    the second one if the first is the OCR hint.

    Metrics: accuracy.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_ZIP),
        OfficialFile(_ANSWERS, _SITE),
        OfficialFile("textvqa/train_images", f"train_val_images.zip of {_SITE}"),
    )

    def questions(self) -> list[Question]:
        references = self._references()
        path = self.root / _QUESTIONS
        questions = []
        for question in read_questions(path, self.root / "textvqa" / "train_images"):
            key = question.id, _asked(question.prompt)
            if key not in references:
                raise DataError(
                    f"{path}: question {question.id} asks {key[1]!r:.60}, which"
                    f" {self.root / _ANSWERS} does not; download both again."
                )
            questions.append(replace(question, reference=references[key]))
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        return accuracy(questions, answers, _agreement)

    def _references(self) -> dict[tuple[str, str], list[str]]:
        path = self.root / _ANSWERS
        rows = read_array(path, {"image_id": str, "question": str, "answers": list}, "data")
        for number, row in enumerate(rows, 1):
            if len(row["answers"]) != 10 or not all(isinstance(a, str) for a in row["answers"]):
                raise DataError(f"{path}, entry {number}: field 'answers' must hold ten texts.")
        return {(row["image_id"], row["question"].lower()): row["answers"] for row in rows}


def _asked(prompt: str) -> str:
    lines = prompt.lower().split("\n")
    return lines[1] if prompt.startswith(_HINT) and len(lines) > 1 else lines[0]


def _agreement(answer: str, people: Sequence[str]) -> float:
    return soft_accuracy(evalai(answer), [evalai(person) for person in people])
