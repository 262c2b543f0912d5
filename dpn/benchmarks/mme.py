"""MME: two questions per image, one with answer yes and one with no (arXiv 2306.13394)."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from dpn.benchmarks._files import check_same, check_unique, keyed, read_text
from dpn.benchmarks._short_answers import graded, read_questions
from dpn.benchmarks.base import EVAL_ZIP, SHORT, Benchmark, OfficialFile, Question, Scores, percent
from dpn.common.files import write_text
from dpn.data.batch import DataError

SUBTASKS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": (
        "commonsense_reasoning",
        "numerical_calculation",
        "text_translation",
        "code_reasoning",
    ),
}
_QUESTIONS = "MME/llava_mme.jsonl"
_RELEASE = "MME/MME_Benchmark_release_version"
_SITE = "the MME release of github.com/BradyFU/Awesome-Multimodal-Large-Language-Models"
_DEMAND = "Please answer yes or no."


class MME(Benchmark):
    """MME: 14 subtasks of two kinds, perception and cognition.

    An answer is `yes` if its first four characters contain it, else `no` if they contain that, else
    wrong. The score of a subtask is its accuracy plus accuracy+ (the share of images with all
    questions correct), both in percent, so at most 200. results/<subtask>.txt is for MME's own
    `calculation.py`.

    Metrics, in points: perception (which papers report) and cognition, each the sum of its
    subtasks' scores, and the score of each subtask.
    """

    files = (
        OfficialFile(_QUESTIONS, EVAL_ZIP),
        OfficialFile(_RELEASE, _SITE),
    )
    headline = "perception"

    def questions(self) -> list[Question]:
        labels_of = cache(_labels)
        path = self.root / _QUESTIONS
        found = read_questions(path, self.root / _RELEASE)
        questions = [self._labelled(question, labels_of) for question in found]
        asked: dict[Path, list[str]] = {}
        for question in questions:
            asked.setdefault(self._file(question), []).append(question.meta["question"])
        for file, forms in asked.items():  # accuracy+ needs all questions of an image, once
            check_unique(forms, path)
            check_same(forms, labels_of(file), path, file)
        return questions

    def score(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> Scores:
        samples = graded(questions, answers, lambda answer, right: said(answer) == right.lower())
        pictures: dict[str, dict[int | str, list[float]]] = {}
        for question, sample in zip(questions, samples, strict=True):
            subtask = pictures.setdefault(str(question.category), {})
            subtask.setdefault(question.id, []).append(sample)
        metrics: dict[str, float] = {}
        for kind, subtasks in SUBTASKS.items():
            points = {
                f"score/{name}": _points(pictures[name].values())
                for name in subtasks
                if name in pictures
            }
            metrics |= {kind: sum(points.values()), **points} if points else {}
        return Scores(metrics, [*samples])

    def upload(
        self, questions: Sequence[Question], answers: Sequence[str | None], folder: Path
    ) -> None:
        rows: dict[str, str] = {}
        for question, answer in zip(questions, answers, strict=True):
            one_line = re.sub(r"[\t\r\n]", " ", answer or "")
            cells = question.meta["file"], question.meta["question"], question.reference, one_line
            subtask = str(question.category)
            rows[subtask] = rows.get(subtask, "") + "\t".join(cells) + "\n"
        for subtask, text in rows.items():
            write_text(folder / "results" / f"{subtask}.txt", text)

    def _file(self, question: Question) -> Path:
        """File with the labels of a question's image."""
        subtask = _subtask(question)
        if not any(subtask in subtasks for subtasks in SUBTASKS.values()):
            raise DataError(
                f"{self.root / _QUESTIONS}: question {question.id} has the subtask {subtask!r},"
                " which MME does not have; download the official file again."
            )
        folder = self.root / _RELEASE / subtask
        nested = folder / "questions_answers_YN"
        picture = str(question.id).split("/")[-1]
        return (nested if nested.is_dir() else folder) / f"{picture.partition('.')[0]}.txt"

    def _labelled(
        self, question: Question, labels_of: Callable[[Path], dict[str, str]]
    ) -> Question:
        """Add the label from the release, in which the question is worded slightly differently."""
        file, subtask = self._file(question), _subtask(question)
        text = question.prompt.replace(SHORT.strip(), "").strip()
        forms = [text] if _DEMAND in text else [f"{text} {_DEMAND}", f"{text}  {_DEMAND}"]
        labels = labels_of(file)
        form = next((form for form in forms if form in labels), None)
        if form is None:
            raise DataError(
                f"{file} has no question {forms[0]!r}; download it and {_QUESTIONS} again."
            )
        meta = {"file": file.name, "question": form}
        return replace(question, reference=labels[form], category=subtask, meta=meta)


def _subtask(question: Question) -> str:
    return str(question.id).split("/")[0]


def said(answer: str) -> str:
    """Return `yes`, `no` or `other` for an answer, like MME's `calculation.py`."""
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def _labels(file: Path) -> dict[str, str]:
    """Read the label, Yes or No, of each question about an image."""
    if not os.path.exists(file):  # Path.exists raises for some names
        raise DataError(f"{file} does not exist; download {_SITE} again.")
    labels = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            question, _, label = line.strip().partition("\t")
            if label.lower() not in ("yes", "no"):
                raise DataError(
                    f"{file}, line {number}: {line!r:.60} must be a question, a tab and Yes or No."
                )
            labels.append((question, label))
    return keyed(labels, file)


def _points(pictures: Collection[Sequence[float]]) -> float:
    """Return accuracy plus accuracy+, each in percent."""
    singles = [sample for picture in pictures for sample in picture]
    return percent(singles) + percent([min(picture) for picture in pictures])
