import pytest

from dpn.benchmarks import build
from dpn.data.batch import DataError
from tests.benchmarks.files import damage, picture, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
QUESTIONS = [
    (7, "Who wrote this book?", "Jane Austen"),
    (7, "What is its genre?", " Romance "),
    (8, "Who wrote this book?", "J. R. R. Tolkien"),
    (7, "What is its genre?", "Novel"),  # asked again: this answer counts for both
]


def make(root):
    rows = []
    for id, text, answer in QUESTIONS:
        picture(root / "ocrvqa" / "images" / f"{id}.jpg")
        row = {"question_id": id, "image": f"{id}.jpg", "text": text + SHORT, "answer": answer}
        rows.append(row)
    write_jsonl(root / "ocrvqa" / "ocrvqa_test.jsonl", rows)


@pytest.fixture
def ocrvqa(tmp_path):
    make(tmp_path)
    return build("ocrvqa", root=tmp_path)


def test_prompt_and_reference(ocrvqa):
    questions = ocrvqa.questions()
    assert questions[0].prompt == (
        "Who wrote this book?\nAnswer the question using a single word or phrase."
    )
    references = [question.reference for question in questions]
    assert references == ["Jane Austen", "Novel", "J. R. R. Tolkien", "Novel"]


@pytest.mark.parametrize(
    ("answers", "samples"),
    [
        ([" jane austen\n", "Romance", "J. R. R. Tolkien", "NOVEL"], [1, 0, 1, 1]),
        (["Jane Austen.", None, "J.R.R. Tolkien", ""], [0, 0, 0, 0]),
    ],
)
def test_scores_by_hand(ocrvqa, tmp_path, answers, samples):
    scores = ocrvqa.score(ocrvqa.questions(), answers, tmp_path)
    assert scores.samples == samples
    assert scores.metrics == {"accuracy": 25 * sum(samples)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"answer": None}, r"ocrvqa_test.jsonl, line 4: field 'answer' \(str\) is missing"),
        ({"text": 3}, "line 4: field 'text' is 3; it must be str"),
    ],
)
def test_a_damaged_question_is_named(ocrvqa, changes, sentence):
    damage(ocrvqa.root / "ocrvqa" / "ocrvqa_test.jsonl", **changes)
    with pytest.raises(DataError, match=sentence):
        ocrvqa.questions()
