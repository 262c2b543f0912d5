import json

import pytest

from dpn.data.batch import DataError
from tests.benchmarks.files import picture, write_json, write_jsonl

QUESTIONS = [
    ("201307251", "Is it overcast?", "no", "verify"),
    ("201640614", "Who wears the dress?", "woman", "query"),
    ("202225914", "Is the cup red or blue?", "red", "choose"),
]


def make(root):
    folder = root / "gqa"
    rows, answers = [], {}
    for number, (id, text, answer, kind) in enumerate(QUESTIONS):
        picture(folder / "data" / "images" / f"n{number}.jpg")
        prompt = f"{text}\nAnswer the question using a single word or phrase."
        rows.append({"question_id": id, "image": f"n{number}.jpg", "text": prompt})
        answers[id] = {"question": text, "answer": answer, "types": {"structural": kind}}
    write_jsonl(folder / "llava_gqa_testdev_balanced.jsonl", rows)
    write_json(folder / "data" / "testdev_balanced_questions.json", answers)


DAMAGED = {
    "gqa/llava_gqa_testdev_balanced.jsonl": [
        ({"question_id": True}, "balanced.jsonl, line 3: field 'question_id' is True"),
    ],
    "gqa/data/testdev_balanced_questions.json": [
        (
            lambda rows: rows.pop("202225914"),
            "balanced_questions.json has no question 202225914; download it and gqa/llava_gqa",
        ),
        (
            lambda rows: rows.update(more=rows["202225914"]),
            "balanced_questions.json do not belong together: 'more' is in only one of them",
        ),
        (
            lambda rows: rows["202225914"].pop("answer"),
            "balanced_questions.json, entry '202225914': field 'answer'",
        ),
        (
            lambda rows: rows["202225914"].update(types={}),
            "balanced_questions.json, entry '202225914': field 'types' must",
        ),
    ],
}


def test_prompt_and_reference(benchmark):
    question = benchmark.questions()[1]
    assert question.prompt == (
        "Who wears the dress?\nAnswer the question using a single word or phrase."
    )
    assert (question.reference, question.category) == ("woman", "open")


def test_scores_by_hand(benchmark, tmp_path):
    questions = benchmark.questions()
    scores = benchmark.score(questions, ["No.", "woman", None], tmp_path)
    assert scores.samples == [1, 1, 0]
    assert scores.metrics == pytest.approx(
        {"accuracy": 200 / 3, "accuracy/binary": 50, "accuracy/open": 100}
    )
    scores = benchmark.score(questions, ["no !", "a woman", " red"], tmp_path)
    assert scores.samples == [0, 0, 0]  # compared as it is


def test_predictions_are_what_gqas_evaluator_reads(benchmark, tmp_path):
    benchmark.write(benchmark.questions(), ["No..", None, "A. Red"], tmp_path, "tiny")
    assert json.loads((tmp_path / "testdev_balanced_predictions.json").read_text()) == [
        {"questionId": "201307251", "prediction": "no"},
        {"questionId": "201640614", "prediction": ""},
        {"questionId": "202225914", "prediction": "a. red"},
    ]


def test_without_the_file_of_answers_there_are_no_references(benchmark, tmp_path):
    (benchmark.root / "gqa" / "data" / "testdev_balanced_questions.json").unlink()
    scores = benchmark.score(benchmark.questions(), ["no", "woman", "red"], tmp_path)
    assert scores.metrics == {}
    assert scores.samples == [None] * 3


def test_answers_are_an_object(benchmark):
    write_json(benchmark.root / "gqa" / "data" / "testdev_balanced_questions.json", [])
    with pytest.raises(DataError, match=r"questions.json must hold an object; download the file"):
        benchmark.questions()
