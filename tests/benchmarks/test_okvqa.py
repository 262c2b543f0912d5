import json

import pytest

from tests.benchmarks.files import people, picture, write_json, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
#: Id, question, type, answers of ten people.
QUESTIONS = [
    (2971475, "What sport is it?", "four", people(race=4, motocross=6)),
    (3397615, "What breed is the dog?", "four", people(poodle=2, **{"Golden retriever": 8})),
    (1, "What is worn?", "one", people(**{"t-shirt": 10})),
]


def make(root):
    rows, annotations = [], []
    for id, text, kind, answers in QUESTIONS:
        image = f"COCO_val2014_{id:012}.jpg"
        picture(root / "coco-cap" / "val2014" / image)
        rows.append({"question_id": id, "image": image, "text": text + SHORT})
        annotations.append(
            {"question_id": id, "answers": answers, "question_type": kind, "answer_type": "other"}
        )
    write_jsonl(root / "okvqa" / "okvqa_val.jsonl", rows)
    path = root / "okvqa" / "mscoco_val2014_annotations.json"
    write_json(path, {"annotations": annotations[::-1]})  # joined by id


DAMAGED = {
    "okvqa/okvqa_val.jsonl": [
        ({"image": None}, r"okvqa_val.jsonl, line 3: field 'image' \(str\) is missing"),
        ({"question_id": 2}, r"annotations.json do not belong together: 1 is in only one of them"),
    ],
    "okvqa/mscoco_val2014_annotations.json": [
        (
            lambda value: value["annotations"][2].pop("answer_type"),
            r"annotations.json, entry 3: field 'answer_type' \(str\)",
        ),
    ],
}


def test_prompt_and_reference(benchmark):
    question = benchmark.questions()[0]
    assert question.prompt == (
        "What sport is it?\nAnswer the question using a single word or phrase."
    )
    assert question.reference == ["race"] * 4 + ["motocross"] * 6


def test_scores_by_hand(benchmark, tmp_path):
    questions = benchmark.questions()
    scores = benchmark.score(questions, ["The race.", "Poodle", None], tmp_path)
    assert scores.samples == pytest.approx([1, 0.6, 0])
    assert scores.metrics == {
        "accuracy": 53.33,
        "accuracy/other": 53.33,
        "accuracy_by_question_type/four": 80,
        "accuracy_by_question_type/one": 0,
    }
    scores = benchmark.score(questions, ["race track", "Golden retriever", "t-shirt"], tmp_path)
    assert scores.samples == [0, 0, 0]  # references keep case, and marks if they are all equal


def test_results_are_what_the_evaluator_reads(benchmark, tmp_path):
    benchmark.write(benchmark.questions()[:2], ["The race.", None], tmp_path, "tiny")
    assert json.loads((tmp_path / "okvqa_results.json").read_text()) == [
        {"question_id": 2971475, "answer": "The race."},
        {"question_id": 3397615, "answer": ""},
        {"question_id": 1, "answer": ""},
    ]
