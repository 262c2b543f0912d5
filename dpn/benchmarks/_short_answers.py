"""Helpers of benchmarks with short answers: LLaVA's question files and scores by a rule."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpn.benchmarks._files import ID, image_of, read_jsonl
from dpn.benchmarks.base import OfficialFile, Question, Scores, by_category, percent
from dpn.common.errors import SettingError

#: Source of LLaVA-HR's additional question files.
EVAL_AUG_ZIP = "eval_aug.zip, linked in Evaluation.md of github.com/luogen1996/LLaVA-HR"


def files_of(
    split: str, splits: Mapping[str, tuple[OfficialFile, ...]]
) -> tuple[OfficialFile, ...]:
    """Return the files of a split.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in splits:
        raise SettingError(f"There is no split {split!r}; choose {', '.join(splits)}.")
    return splits[split]


def read_questions(path: Path, images: Path, reference: str | None = None) -> list[Question]:
    """Read questions with one image each from a file in LLaVA's format.

    Args:
        path: JSON lines file with `question_id`, `image` and `text` (including the suffix).
        images: Folder of the images.
        reference: Field with the reference answer, if the file has one.

    Raises:
        DataError: If a line is invalid; names file, line and field.
    """
    texts = ["image", "text"] if reference is None else ["image", "text", reference]
    return [
        Question(
            id=row["question_id"],
            prompt=row["text"],
            images=(image_of(images, row["image"]),),
            reference=None if reference is None else row[reference],
            meta={"image": row["image"]},
        )
        for row in read_jsonl(path, {"question_id": ID, **dict.fromkeys(texts, str)})
    ]


def accuracy(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    rule: Callable[[str, Any], float],
) -> Scores:
    """Compute the accuracy in percent, overall and per category; empty without references.

    Args:
        questions: Questions that were asked.
        answers: One answer per question; None if there is none.
        rule: Function of answer and reference that returns a score from 0 to 1.
    """
    if any(question.reference is None for question in questions):
        return Scores({}, [None] * len(questions))
    samples = graded(questions, answers, rule)
    metrics = {"accuracy": percent(samples)}
    if all(question.category for question in questions):
        metrics |= by_group("accuracy", questions, samples)
    return Scores(metrics, [*samples])


def graded(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    rule: Callable[[str, Any], float],
) -> list[float]:
    """Score each answer from 0 to 1 with `rule(answer, reference)`; a missing answer scores 0."""
    return [
        0.0 if answer is None else float(rule(answer, question.reference))
        for question, answer in zip(questions, answers, strict=True)
    ]


def by_group(
    metric: str, questions: Sequence[Question], samples: Sequence[float]
) -> dict[str, float]:
    """Average per category in percent as `<metric>/<category>`; slashes in it become hyphens."""
    groups = by_category(questions, samples).items()
    return {f"{metric}/{name.replace('/', '-')}": percent(values) for name, values in groups}
