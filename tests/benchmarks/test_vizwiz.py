import json

import pytest

from tests.benchmarks.files import people, picture, write_json, write_jsonl

SUFFIX = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    "\nAnswer the question using a single word or phrase."
)
QUESTIONS = ["What is this? ", "What does it say?", "Is it on?"]


def make(root):
    rows = []
    for number, text in enumerate(QUESTIONS):
        image = f"VizWiz_test_{number:08}.jpg"
        picture(root / "vizwiz" / "test" / image)
        rows.append({"question_id": number, "image": image, "text": text + SUFFIX})
    write_jsonl(root / "vizwiz" / "llava_test.jsonl", rows)


def make_val(root):
    said = [people(unanswerable=3, cup=7), people(EXIT=9, no=1), people(**{"t-shirt": 6, "a": 4})]
    types = ["unanswerable", "other", "other"]
    rows = []
    for number, (text, answers, kind) in enumerate(zip(QUESTIONS, said, types, strict=True)):
        image = f"VizWiz_val_{number:08}.jpg"
        picture(root / "vizwiz" / "val" / image)
        rows.append({"image": image, "question": text, "answers": answers, "answer_type": kind})
    write_json(root / "vizwiz" / "val.json", rows)


DAMAGED = {
    "vizwiz/llava_test.jsonl": [({"image": 7}, "llava_test.jsonl, line 3: field 'image' is 7")],
}


DAMAGED_VAL = {
    "vizwiz/val.json": [
        (
            lambda rows: rows[1].pop("question"),
            r"val.json, entry 2: field 'question' \(str\) is missing",
        ),
        (
            lambda rows: rows[1].update(answers=["no"]),
            "val.json, entry 2: field 'answers' must hold objects",
        ),
    ],
}


def test_prompt(benchmark):
    assert benchmark.questions()[0].prompt == (
        "What is this? \nWhen the provided information is insufficient, respond with"
        " 'Unanswerable'.\nAnswer the question using a single word or phrase."
    )


def test_upload_has_all_pictures(benchmark, tmp_path):
    benchmark.write(benchmark.questions()[1:], ["EXIT.", None], tmp_path, "tiny")
    assert json.loads((tmp_path / "answers_upload.json").read_text()) == [
        {"image": "VizWiz_test_00000000.jpg", "answer": ""},
        {"image": "VizWiz_test_00000001.jpg", "answer": "exit"},
        {"image": "VizWiz_test_00000002.jpg", "answer": ""},
    ]


def test_val_prompts_are_those_of_the_test_set(val):
    assert val.missing() == []
    questions = val.questions()
    assert [question.prompt for question in questions] == [text + SUFFIX for text in QUESTIONS]
    assert questions[2].images[0]().size == (16, 12)


def test_val_scores_by_hand(val, tmp_path):
    questions = val.questions()
    scores = val.score(questions, ["Unanswerable.", "exit", None], tmp_path)
    assert scores.samples == pytest.approx([0.9, 0, 0])  # references keep case
    assert scores.metrics == pytest.approx(
        {"accuracy": 30, "accuracy/unanswerable": 90, "accuracy/other": 0}
    )
    assert val.score(questions[2:], ["t-shirt"], tmp_path).samples == [0]  # and marks
