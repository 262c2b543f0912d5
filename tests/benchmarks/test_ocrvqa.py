import pytest

from tests.benchmarks.files import picture, write_jsonl

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


DAMAGED = {
    "ocrvqa/ocrvqa_test.jsonl": [
        ({"answer": None}, r"ocrvqa_test.jsonl, line 4: field 'answer' \(str\) is missing"),
        ({"text": 3}, "line 4: field 'text' is 3; it must be str"),
    ],
}


def test_prompt_and_reference(benchmark):
    questions = benchmark.questions()
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
def test_scores_by_hand(benchmark, tmp_path, answers, samples):
    scores = benchmark.score(benchmark.questions(), answers, tmp_path)
    assert scores.samples == samples
    assert scores.metrics == {"accuracy": 25 * sum(samples)}
