import json

import pytest

from dpn.data.batch import DataError
from tests.benchmarks.files import picture, write_json, write_jsonl

#: Capabilities of each question.
QUESTIONS = [["ocr", "math"], ["rec"], ["rec", "ocr"]]


def make(root):
    folder = root / "mm-vet"
    rows, entries = [], {}
    for number, capabilities in enumerate(QUESTIONS):
        image = f"v1_{number}.png"
        picture(folder / "images" / image)
        text = f"What is x in {number}?"
        rows.append({"question_id": number, "image": image, "text": text})
        entries[f"v1_{number}"] = {
            "imagename": image,
            "question": text,
            "answer": "-1<AND>-5",
            "capability": capabilities,
        }
    write_jsonl(folder / "llava-mm-vet.jsonl", rows)
    write_json(folder / "mm-vet.json", entries)


DAMAGED = {
    "mm-vet/llava-mm-vet.jsonl": [
        ({"text": None}, r"llava-mm-vet.jsonl, line 3: field 'text' \(str\) is missing"),
        ({"question_id": 5}, "do not belong together: 'v1_2' is in only one of them"),
    ],
    "mm-vet/mm-vet.json": [
        (
            lambda entries: entries["v1_1"].update(capability="rec"),
            "mm-vet.json, entry 'v1_1': field 'capability' is 'rec'",
        ),
    ],
}


def test_prompts_have_no_suffix(benchmark):
    question = benchmark.questions()[1]
    assert question.prompt == "What is x in 1?"
    assert question.reference == "-1<AND>-5"


def test_predictions_for_the_judge(benchmark, tmp_path):
    benchmark.upload(benchmark.questions(), ["x = -1", None, "ä"], tmp_path)
    said = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert said == {"v1_0": "x = -1", "v1_1": "", "v1_2": "ä"}


def test_scores_by_hand(benchmark, tmp_path):
    questions = benchmark.questions()
    scores = benchmark.score(questions, ["a", "b", "c"], tmp_path)
    assert (scores.metrics, scores.samples) == ({}, [None] * 3)
    grades = {"v1_2": [1, 1.0], "v1_0": [0.2, 0.4], "v1_1": [0.5, 0.5]}
    rows = {key: {"model": ["gpt-4-0613"] * 2, "score": runs} for key, runs in grades.items()}
    write_json(tmp_path / "grades.json", rows)
    scores = benchmark.score(questions, ["a", "b", "c"], tmp_path)
    assert scores.samples == pytest.approx([0.3, 0.5, 1])
    assert scores.metrics == pytest.approx(
        {"score": 60, "score/ocr": 65, "score/math": 30, "score/rec": 75}
    )
    assert benchmark.score(questions, ["a", None, "c"], tmp_path).samples[1] == 0


@pytest.mark.parametrize("runs", [[], [1.1], [-0.1], ["0.5"], [True], [0.5, None]])
def test_a_damaged_grade_is_named(benchmark, tmp_path, runs):
    write_json(tmp_path / "grades.json", {"v1_0": {"score": runs}})
    with pytest.raises(DataError, match=r"grades.json, entry 'v1_0': field 'score' is"):
        benchmark.score(benchmark.questions()[:1], ["a"], tmp_path)


def test_a_question_without_grade_is_named(benchmark, tmp_path):
    write_json(tmp_path / "grades.json", {"v1_0": {"score": [1]}})
    with pytest.raises(DataError, match="entry 'v1_1': field 'score' is None; it must be a list"):
        benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)


def test_entries_are_an_object(benchmark):
    write_json(benchmark.root / "mm-vet" / "mm-vet.json", [])
    with pytest.raises(DataError, match=r"mm-vet.json must hold an object; download the file"):
        benchmark.questions()
