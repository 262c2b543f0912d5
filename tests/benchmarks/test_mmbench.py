import base64
import json

import pytest
from openpyxl import load_workbook

from dpn.benchmarks import build
from dpn.benchmarks._mmbench import said_option
from dpn.data.batch import DataError
from tests.benchmarks.files import picture_bytes, write_table

SPLIT = "mmbench_dev_20230712"
CELLS = {
    "index": 241,
    "question": "What is it?",
    "hint": "Look.",
    "A": "a cat",
    "B": "Na",
    "C": "a dog",
    "D": "nan",
    "answer": "C",
    "category": "object_localization",
    "image": base64.b64encode(picture_bytes()).decode(),
    "source": "web",
    "l2-category": "FP-S",
    "comment": "none",
    "split": "dev",
}
TURNED = {"index": 1_000_241, "A": "Na", "B": "a dog", "C": "a cat", "D": "", "answer": "B"}
OTHER = {"index": 7, "hint": "NaN", "C": "NONE", "answer": "A", "l2-category": "LR"}


def rows(*changes):
    return [CELLS | change for change in changes]


def make(root):
    write_table(root / "mmbench" / f"{SPLIT}.tsv", rows({}, TURNED, OTHER))


def with_rows(root, *changes, **arguments):
    write_table(root / "mmbench" / f"{SPLIT}.tsv", rows(*changes))
    return build("mmbench", root=root, **arguments)


def test_prompts_stop_at_the_first_empty_option(benchmark):
    questions = benchmark.questions()
    ask = "\nAnswer with the option's letter from the given choices directly."
    assert questions[0].prompt == f"Look.\nWhat is it?\nA. a cat\nB. Na\nC. a dog{ask}"
    assert questions[2].prompt == f"What is it?\nA. a cat\nB. Na{ask}"
    assert [len(q.meta["options"]) for q in questions] == [3, 3, 2]
    assert [(q.id, q.reference) for q in questions] == [(241, "C"), (1_000_241, "B"), (7, "A")]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("B", "B"),
        ("The answer is B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B: red", "B"),
        ("b", None),
        ("A cat", "A"),
        ("A", "A"),
        ("A red thing", "A"),
        ("A thing that is red", None),  # an article
        ("A or B", None),
        ("A, or B.", "B"),  # by the order of the forms
        ("E", "E"),
        ("It is a DOG", "C"),
        ("a cat and a dog", None),
        ("", None),
    ],
)
def test_option_of_an_answer(answer, said):
    assert said_option(answer, ["a cat", "Na", "a dog"]) == said


def test_a_question_is_right_if_all_its_orders_are(benchmark, tmp_path):
    scores = benchmark.score(benchmark.questions(), ["C", "C", "A."], tmp_path)
    assert scores.samples == [1, 0, 1]
    assert scores.metrics == pytest.approx(
        {
            "accuracy": 50,
            "vanilla_accuracy": 200 / 3,
            "accuracy/FP-S": 0,
            "accuracy/LR": 100,
        }
    )
    whole = benchmark.score(benchmark.questions(), ["C", "a dog", None], tmp_path)
    assert whole.samples == [1, 1, 0]
    assert whole.metrics["accuracy"] == 50


def test_all_rounds_turn_the_options(tmp_path):
    benchmark = with_rows(tmp_path, {}, all_rounds=True)
    questions = benchmark.questions()
    assert [q.prompt.splitlines()[2:5] for q in questions] == [
        ["A. a cat", "B. Na", "C. a dog"],
        ["A. Na", "B. a dog", "C. a cat"],
        ["A. a dog", "B. a cat", "C. Na"],
    ]
    assert [q.reference for q in questions] == ["C", "B", "A"]
    assert benchmark.score(questions, ["C", "B", "A"], tmp_path).metrics["accuracy"] == 100
    assert benchmark.score(questions, ["C", "B", "B"], tmp_path).metrics["accuracy"] == 0
    benchmark.write(questions, ["C", "B", "A"], tmp_path / "out", "tiny")
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    assert (row["question_id"], row["round_id"]) == (241, 1)
    assert row["options"] == ["Na", "a dog", "a cat"]
    assert row["option_char"] == ["B", "C", "A"]


def table(path):
    return [list(row) for row in load_workbook(path).active.values]


def test_the_upload_holds_all_rows(benchmark, tmp_path):
    benchmark.upload(benchmark.questions()[:2], ["C", "=1+1\x07"], tmp_path)
    assert table(tmp_path / f"{SPLIT}.xlsx") == [
        ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"],
        [241, "What is it?", "a cat", "Na", "a dog", None, "C", "C", "dev"],
        [1_000_241, "What is it?", "Na", "a dog", "a cat", None, "=1+1", "B", "dev"],
        [7, "What is it?", "a cat", "Na", None, None, None, "A", "dev"],
    ]
    assert load_workbook(tmp_path / f"{SPLIT}.xlsx").active["G3"].data_type == "s"  # no formula


def test_the_upload_takes_the_round_with_the_tables_own_order(tmp_path):
    benchmark = with_rows(tmp_path, {}, all_rounds=True)
    benchmark.upload(benchmark.questions(), ["C", "B", "A"], tmp_path)
    assert table(tmp_path / f"{SPLIT}.xlsx")[1][6] == "C"


def test_without_answers_there_are_no_scores(tmp_path):
    cells = {name: cell for name, cell in CELLS.items() if name != "answer"}
    write_table(tmp_path / "mmbench" / "test.tsv", [cells])
    benchmark = build("mmbench", root=tmp_path, split="test")
    assert benchmark.missing() == []
    scores = benchmark.score(benchmark.questions(), ["C"], tmp_path)
    assert (scores.metrics, scores.samples) == ({}, [None])
    benchmark.upload(benchmark.questions(), ["C"], tmp_path)
    assert table(tmp_path / "test.xlsx")[0][5:] == ["D", "prediction", "split"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"index": "x"}, f"{SPLIT}.tsv, row 2: field 'index' is 'x'; it must be a number"),
        ({"answer": "D"}, "row 2: field 'answer' is 'D'; it must be one of A, B, C"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, sentence):
    with pytest.raises(DataError, match=sentence):
        with_rows(tmp_path, {}, change).questions()


def test_a_missing_column_is_named(tmp_path):
    cells = {name: cell for name, cell in CELLS.items() if name != "hint"}
    write_table(tmp_path / "mmbench" / f"{SPLIT}.tsv", [cells])
    with pytest.raises(DataError, match=r"line 2: field 'hint' \(str\) is missing"):
        build("mmbench", root=tmp_path).questions()


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [("abc", "row 1: field 'image' is not valid base64"), ("AAAA", "row 1: the image is corrupt")],
)
def test_a_damaged_picture_is_named(tmp_path, cell, sentence):
    question = with_rows(tmp_path, {"image": cell}).questions()[0]
    with pytest.raises(DataError, match=sentence):
        question.images[0]()


def test_characters_that_a_workbook_cannot_hold_are_left_out(tmp_path):
    benchmark = with_rows(tmp_path, {"spl\x14it": "x\x01"})
    questions = benchmark.questions()
    benchmark.upload(questions, ["A"] * len(questions), tmp_path)
    head, first = load_workbook(tmp_path / f"{SPLIT}.xlsx").active.values
    assert dict(zip(head, first, strict=True))["split"] == "x"
