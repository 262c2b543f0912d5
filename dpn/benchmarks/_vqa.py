"""VQA's annotation and result files and its soft accuracy (arXiv 1505.00468)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpn.benchmarks._files import ID, Fields, check_same, check_unique, keyed, read_array
from dpn.benchmarks._short_answers import accuracy, by_group
from dpn.benchmarks.base import Question, Scores
from dpn.common.files import write_json
from dpn.data.batch import DataError
from dpn.metrics.normalisation import punctuation, vqa_eval


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Compute min(1, matches / 3), averaged over leaving out each reference once.

    With ten references, one match scores 0.3, two 0.6, three 0.9, four or more 1.
    """
    people, same = len(references), references.count(answer)
    total = same * min(1, (same - 1) / 3) + (people - same) * min(1, same / 3)
    return total / people


def official_accuracy(answer: str, references: Sequence[str]) -> float:
    """Score an answer like `vqaEval.py`.

    References keep their case and articles, and also their punctuation if all are equal.
    """
    if len(set(references)) > 1:
        references = [punctuation(reference) for reference in references]
    return soft_accuracy(vqa_eval(answer), references)


def annotated(questions: Sequence[Question], file: Path, path: Path) -> list[Question]:
    """Add references and types from an annotation file to questions; ids must be the same.

    Raises:
        DataError: If an entry is invalid or an id is only in one file.
    """
    fields: Fields = {"question_id": ID, "answers": list, "question_type": str, "answer_type": str}
    found = read_array(path, fields, "annotations")
    rows = keyed(((row["question_id"], row) for row in found), path)
    check_unique((question.id for question in questions), file)
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
    """Return the texts of a row's `answers`.

    Raises:
        DataError: If there are none or they are not texts; names `place`.
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
    """Compute the accuracy overall, per answer and per question type, in percent (2 decimals)."""
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
    """Write VQA's result format: one answer per id, empty if there is none.

    Raises:
        DataError: If a question that was asked is not among the ids.
    """
    said = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    every = list(ids)
    if lost := said.keys() - set(every):
        raise DataError(
            f"{path} would lack the answer to question {min(lost, key=str)!r}, which the file of"
            " all questions does not have; download the question files again."
        )
    write_json(path, [{"question_id": id, "answer": said.get(id) or ""} for id in every])
