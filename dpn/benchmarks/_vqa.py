"""VQA's annotation and result files and its soft accuracy (arXiv 1505.00468)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpn.benchmarks._answers import punctuation, vqa_eval
from dpn.benchmarks._files import ID, Fields, check_same, read_array
from dpn.benchmarks._short_answers import accuracy, by_group
from dpn.benchmarks.base import Question, Scores
from dpn.common.files import write_json
from dpn.data.batch import DataError


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Min(1, matches / 3), mean over leaving each reference out once.

    Of ten references one match is worth 0.3, two 0.6, three 0.9, four and more 1.
    """
    people, same = len(references), references.count(answer)
    total = same * min(1, (same - 1) / 3) + (people - same) * min(1, same / 3)
    return total / people


def official_accuracy(answer: str, references: Sequence[str]) -> float:
    """As `vqaEval.py` compares: references keep case and articles, and marks if all are equal."""
    if len(set(references)) > 1:
        references = [punctuation(reference) for reference in references]
    return soft_accuracy(vqa_eval(answer), references)


def annotated(questions: Sequence[Question], file: Path, path: Path) -> list[Question]:
    """Questions of a file with what an annotation file says of them; both must hold the same ids.

    Raises:
        DataError: naming file, entry and field, or an id that one of them lacks.
    """
    fields: Fields = {"question_id": ID, "answers": list, "question_type": str, "answer_type": str}
    rows = {row["question_id"]: row for row in read_array(path, fields, "annotations")}
    check_same((question.id for question in questions), rows, file, path)
    return [
        replace(
            question,
            reference=people_said(rows[question.id], f"{path}, question {question.id}"),
            category=rows[question.id]["answer_type"],
            meta={**question.meta, "question_type": rows[question.id]["question_type"]},
        )
        for question in questions
    ]


def people_said(row: Mapping[str, Any], place: str) -> list[str]:
    """The texts of a row's `answers`.

    Raises:
        DataError: naming the place, if there are none or they are no texts.
    """
    texts = []
    for item in row["answers"]:
        text = item.get("answer") if isinstance(item, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{place}: field 'answers' must hold objects with a text as 'answer'.")
        texts.append(text)
    if not texts:
        raise DataError(f"{place}: field 'answers' is empty.")
    return texts


def vqa_scores(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """Accuracy of all, of answer types and of question types, in percent with two decimals."""
    scores = accuracy(questions, answers, official_accuracy)
    if not scores.metrics:
        return scores
    samples = [sample for sample in scores.samples if sample is not None]
    asked = [replace(question, category=question.meta["question_type"]) for question in questions]
    metrics = scores.metrics | by_group("accuracy_by_question_type", asked, samples)
    return Scores({key: round(value, 2) for key, value in metrics.items()}, scores.samples)


def write_results(
    path: Path,
    ids: Iterable[int | str],
    questions: Sequence[Question],
    answers: Sequence[str | None],
) -> None:
    """Write VQA's result format: an answer for each of the ids, empty where there is none."""
    said = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    write_json(path, [{"question_id": id, "answer": said.get(id) or ""} for id in ids])
