import json

import pytest

from dpn.benchmarks import build
from dpn.data.batch import DataError
from tests.benchmarks.files import change, damage, people, picture, write_json, write_jsonl

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


@pytest.fixture
def okvqa(tmp_path):
    make(tmp_path)
    return build("okvqa", root=tmp_path)


def test_prompt_and_reference(okvqa):
    question = okvqa.questions()[0]
    assert question.prompt == (
        "What sport is it?\nAnswer the question using a single word or phrase."
    )
    assert question.reference == ["race"] * 4 + ["motocross"] * 6


def test_scores_by_hand(okvqa, tmp_path):
    questions = okvqa.questions()
    scores = okvqa.score(questions, ["The race.", "Poodle", None], tmp_path)
    assert scores.samples == pytest.approx([1, 0.6, 0])
    assert scores.metrics == {
        "accuracy": 53.33,
        "accuracy/other": 53.33,
        "accuracy_by_question_type/four": 80,
        "accuracy_by_question_type/one": 0,
    }
    scores = okvqa.score(questions, ["race track", "Golden retriever", "t-shirt"], tmp_path)
    assert scores.samples == [0, 0, 0]  # references keep case, and marks if they are all equal


def test_results_are_what_the_evaluator_reads(okvqa, tmp_path):
    okvqa.write(okvqa.questions()[:2], ["The race.", None], tmp_path, "tiny")
    assert json.loads((tmp_path / "okvqa_results.json").read_text()) == [
        {"question_id": 2971475, "answer": "The race."},
        {"question_id": 3397615, "answer": ""},
        {"question_id": 1, "answer": ""},
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image": None}, r"okvqa_val.jsonl, line 3: field 'image' \(str\) is missing"),
        ({"question_id": 2}, r"annotations.json do not belong together, 1 is in one of them alone"),
    ],
)
def test_a_damaged_question_is_named(okvqa, changes, sentence):
    damage(okvqa.root / "okvqa" / "okvqa_val.jsonl", **changes)
    with pytest.raises(DataError, match=sentence):
        okvqa.questions()


def test_a_damaged_annotation_is_named(okvqa):
    path = okvqa.root / "okvqa" / "mscoco_val2014_annotations.json"
    change(path, lambda value: value["annotations"][2].pop("answer_type"))
    with pytest.raises(DataError, match=r"annotations.json, entry 3: field 'answer_type' \(str\)"):
        okvqa.questions()
