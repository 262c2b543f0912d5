import json

import pytest

from tests.benchmarks.files import picture, write_json, write_jsonl

KINDS = {"Scene Understanding": 1, "Action Recognition": 10}
#: Id in the questions, id in the annotations, kind and answer.
QUESTIONS = [(101669, "101669", 1, "A"), ("v2", "v2", 10, "C"), (30, 30, 1, "D")]


def make(root):
    folder = root / "seed_bench"
    rows, entries = [], []
    for asked, known, kind, answer in QUESTIONS:
        still = kind == 1
        image = f"SEED-Bench-{'image' if still else 'video-image'}/{asked}.png"
        picture(folder / image)
        text = (
            f"What is {asked}?\nA. one\nB. two\nC. three\nD. four"
            "\nAnswer with the option's letter from the given choices directly."
        )
        rows.append({"question_id": asked, "image": image, "text": text, "category": kind})
        entries.append(
            {
                "question_id": known,
                "question_type_id": kind,
                "data_type": "image" if still else "video",
                "answer": answer,
            }
        )
    write_jsonl(folder / "llava-seed-bench.jsonl", rows)
    write_json(folder / "SEED-Bench.json", {"questions": entries[::-1], "question_type": KINDS})


DAMAGED = {
    "seed_bench/llava-seed-bench.jsonl": [
        ({"image": None}, r"llava-seed-bench.jsonl, line 3: field 'image' \(str\) is missing"),
        ({"text": 1}, "line 3: field 'text' is 1; it must be str"),
        ({"question_id": 31}, "do not belong together: '30' is in only one of them"),
    ],
    "seed_bench/SEED-Bench.json": [
        (
            lambda file: file["questions"][1].pop("answer"),
            r"SEED-Bench.json, entry 2: field 'answer' \(str\)",
        ),
        (
            lambda file: file["questions"][0].update(question_type_id=7),
            "question 30 is of kind 7, which",
        ),
        (lambda file: file.update(questions={}), "must hold an array under 'questions'"),
        (
            lambda file: file.update(question_type=[]),
            r"entry 'question_type': field 'question_type' is \[\]",
        ),
    ],
}


def test_questions_meet_their_annotations(benchmark):
    questions = benchmark.questions()
    assert questions[0].prompt == (
        "What is 101669?\nA. one\nB. two\nC. three\nD. four"
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert [(q.id, q.reference, q.category) for q in questions] == [
        (101669, "A", "Scene Understanding"),
        ("v2", "C", "Action Recognition"),
        (30, "D", "Scene Understanding"),
    ]


def test_scores_by_hand(benchmark, tmp_path):
    scores = benchmark.score(benchmark.questions(), ["A", None, "D."], tmp_path)
    assert scores.samples == [1, 0, 0]  # the letter and nothing else
    assert scores.metrics == pytest.approx(
        {
            "accuracy": 100 / 3,
            "accuracy/image": 50,
            "accuracy/video": 0,
            "accuracy/Scene Understanding": 50,
            "accuracy/Action Recognition": 0,
        }
    )


def test_the_upload_has_all_questions_with_the_ids_of_the_annotations(benchmark, tmp_path):
    benchmark.upload(benchmark.questions(), ["A", None, "D."], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "upload.jsonl").read_text().splitlines()]
    assert rows == [
        {"question_id": "101669", "prediction": "A"},
        {"question_id": "v2", "prediction": ""},
        {"question_id": 30, "prediction": "D."},
    ]
