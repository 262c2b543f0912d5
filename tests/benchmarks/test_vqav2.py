import json

import pytest

from dpn.data.batch import DataError
from tests.benchmarks.files import people, picture, write, write_json, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
QUESTIONS = ["What color is it?", "How many dogs?", "Is it day?"]


def make(root):
    folder = root / "vqav2"
    rows = [
        {"question_id": 10 + n, "image": f"COCO_{n}.jpg", "text": text + SHORT, "category": "x"}
        for n, text in enumerate(QUESTIONS)
    ]
    for row in rows:
        picture(folder / "test2015" / row["image"])
    write_jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", rows)
    more = {**rows[0], "question_id": 99}
    write_jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl", [more, *rows])


def make_val(root):
    folder = root / "vqav2"
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    asked = [
        {"question_id": n, "image_id": 42, "question": text} for n, text in enumerate(QUESTIONS)
    ]
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    types = [("what color", "other"), ("how many", "number"), ("is it", "yes/no")]
    said = [people(red=2, **{"man's": 8}), people(**{"2": 10}), people(yes=3, no=7)]
    answers = [
        {"question_id": n, "answers": s, "question_type": question, "answer_type": answer}
        for n, (s, (question, answer)) in enumerate(zip(said, types, strict=True))
    ]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": answers})


DAMAGED = {
    "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl": [
        ({"text": None}, r"test-dev2015.jsonl, line 3: field 'text' \(str\)"),
    ],
}
DAMAGED_VAL = {
    "vqav2/v2_mscoco_val2014_annotations.json": [
        (
            lambda value: value["annotations"][1].pop("answers"),
            r"annotations.json.*entry 2: field 'answers' \(list\) is missing",
        ),
        (
            lambda value: value["annotations"][1].update(answers=[]),
            "annotations.json.*question 1: field 'answers' is empty",
        ),
        (
            lambda value: value["annotations"][1]["answers"][3].pop("answer"),
            "annotations.json.*question 1: field 'answers' must hold",
        ),
        (
            lambda value: value["annotations"][1]["answers"].append("2"),
            "annotations.json.*question 1: field 'answers' must hold",
        ),
        (
            lambda value: value["annotations"][1].update(question_type=3),
            "annotations.json.*entry 2: field 'question_type' is 3",
        ),
        (
            lambda value: value["annotations"].pop(),
            "annotations.json.* do not belong together: 2 is in only one of them; download both",
        ),
    ],
    "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": [
        (
            lambda value: value["questions"][0].update(image_id="42"),
            "questions.json, entry 1: field 'image_id' is '42'",
        ),
    ],
}


def test_prompt(benchmark):
    question = benchmark.questions()[0]
    assert question.prompt == (
        "What color is it?\nAnswer the question using a single word or phrase."
    )
    assert question.id == 10


def test_upload_has_all_questions_of_the_test_set(benchmark, tmp_path):
    questions = benchmark.questions()[:2]
    benchmark.write(questions, ["The Cat's hat.", None], tmp_path, "tiny")
    assert json.loads((tmp_path / "answers_upload.json").read_text()) == [
        {"question_id": 99, "answer": ""},
        {"question_id": 10, "answer": "cat 's hat"},
        {"question_id": 11, "answer": ""},
        {"question_id": 12, "answer": ""},
    ]


def test_val_prompts_and_pictures_come_from_vqas_own_files(val):
    assert val.missing() == []
    question = val.questions()[1]
    assert question.prompt == "How many dogs?" + SHORT
    assert question.images[0]().size == (16, 12)
    assert question.reference == ["2"] * 10


def test_val_scores_by_hand(val, tmp_path):
    questions = val.questions()
    scores = val.score(questions, ["A red.", "Two", "yes"], tmp_path)
    assert scores.samples == pytest.approx([0.6, 1, 0.9])
    assert scores.metrics == {
        "accuracy": 83.33,
        "accuracy/other": 60,
        "accuracy/number": 100,
        "accuracy/yes-no": 90,
        "accuracy_by_question_type/what color": 60,
        "accuracy_by_question_type/how many": 100,
        "accuracy_by_question_type/is it": 90,
    }
    assert val.score(questions, [None, "many", ""], tmp_path).samples == [0, 0, 0]
    assert val.score(questions[:1], ["man's"], tmp_path).samples == [0]  # uploaded as man 's


def test_val_results_are_what_the_evaluator_reads(val, tmp_path):
    val.write(val.questions()[1:2], ["Two dogs"], tmp_path, "tiny")
    assert json.loads((tmp_path / "answers_upload.json").read_text()) == [
        {"question_id": 0, "answer": ""},
        {"question_id": 1, "answer": "2 dogs"},
        {"question_id": 2, "answer": ""},
    ]


def test_no_answer_is_lost_in_the_upload(benchmark, tmp_path):
    path = tmp_path / "vqav2" / "llava_vqav2_mscoco_test2015.jsonl"
    write(path, "\n".join(path.read_text().splitlines()[:-1]))
    questions = benchmark.questions()
    with pytest.raises(DataError, match="would lack the answer to question 12, which the file"):
        benchmark.upload(questions, ["a"] * 3, tmp_path)
    path = tmp_path / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl"
    write(path, path.read_text() + path.read_text())
    with pytest.raises(DataError, match=r"test-dev2015\.jsonl has question 10 twice"):
        benchmark.questions()
