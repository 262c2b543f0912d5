"""What benchmarks with short answers share: LLaVA's question files, and scores by a rule."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpn.benchmarks._files import ID, image_of, read_jsonl
from dpn.benchmarks.base import OfficialFile, Question, Scores, by_category, percent

#: Where LLaVA-HR's further question files come from.
EVAL_AUG_ZIP = "eval_aug.zip, linked in Evaluation.md of github.com/luogen1996/LLaVA-HR"


def files_of(
    split: str, splits: Mapping[str, tuple[OfficialFile, ...]]
) -> tuple[OfficialFile, ...]:
    """The files of a split.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in splits:
        raise ValueError(f"There is no split {split!r}; there is {', '.join(splits)}.")
    return splits[split]


def read_questions(path: Path, images: Path, reference: str | None = None) -> list[Question]:
    """Questions of a file in LLaVA's format, one image each.

    Args:
        path: the file, JSON lines with `question_id`, `image` and `text`, suffix included.
        images: folder of the images.
        reference: field that holds the right answer, if the file has it.

    Raises:
        DataError: naming file, line and field.
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
    """Accuracy in percent, of all questions and of each category; unknown without references.

    Args:
        questions: see `Benchmark.score`.
        answers: one for each.
        rule: see `graded`.
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
    """What each answer is worth, from 0 to 1, if `rule(answer, reference)` says it."""
    return [
        0.0 if answer is None else float(rule(answer, question.reference))
        for question, answer in zip(questions, answers, strict=True)
    ]


def by_group(
    metric: str, questions: Sequence[Question], samples: Sequence[float]
) -> dict[str, float]:
    """Percent of each category as `<metric>/<category>`, a slash in which becomes a hyphen."""
    groups = by_category(questions, samples).items()
    return {f"{metric}/{name.replace('/', '-')}": percent(values) for name, values in groups}
