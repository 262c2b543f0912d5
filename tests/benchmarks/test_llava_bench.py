import json

import pytest

from dpn.benchmarks.llava_bench import ratings
from dpn.data.batch import DataError
from tests.benchmarks.files import picture, write, write_json, write_jsonl

FOLDER = "llava-bench-in-the-wild"
#: Category and caption of each question.
QUESTIONS = [("conv", "A cat."), ("detail", ["A dog.", "It runs."]), ("conv", "A cat.")]


def make(root):
    folder = root / FOLDER
    rows, captions, answers = [], {}, []
    for number, (category, caption) in enumerate(QUESTIONS):
        image = f"{category}.jpg"
        picture(folder / "images" / image)
        text = f"What is this, {number}?"
        rows.append({"question_id": number, "image": image, "category": category, "text": text})
        captions[image] = {"id": image, "image": image, "caption": caption}
        answers.append({"question_id": number, "text": f"GPT-4 on {number}"})
    rules = {
        f"llava_bench_{name}": {"role": "Assistant", "prompt": f"Rate a {name}."}
        for name in ("conv", "detail", "complex")
    }
    write_jsonl(folder / "questions.jsonl", rows)
    write_jsonl(folder / "context.jsonl", captions.values())
    write_jsonl(folder / "answers_gpt4.jsonl", answers)
    write_json(folder / "rule.json", rules)


DAMAGED = {
    f"{FOLDER}/questions.jsonl": [
        ({"text": None}, r"questions.jsonl, line 3: field 'text' \(str\) is mi"),
        ({"category": "fun"}, "question 2 has the category 'fun'; rule.json has"),
        ({"image": "b.jpg"}, "context.jsonl do not belong together: 'b.jpg' is"),
    ],
    f"{FOLDER}/context.jsonl": [
        ({"caption": 3}, "context.jsonl, line 2: field 'caption' is 3"),
    ],
    f"{FOLDER}/answers_gpt4.jsonl": [
        ({"question_id": 9}, "answers_gpt4.jsonl do not belong together: 2"),
    ],
    f"{FOLDER}/rule.json": [
        (
            lambda rules: rules["llava_bench_conv"].pop("prompt"),
            r"entry 'llava_bench_conv': field 'prompt' \(str\) is mis",
        ),
    ],
}


def test_prompts_have_no_suffix(benchmark):
    questions = benchmark.questions()
    assert [q.prompt for q in questions] == [f"What is this, {n}?" for n in range(3)]
    assert questions[1].reference == "GPT-4 on 1"


def test_what_the_judge_reads(benchmark, tmp_path):
    benchmark.upload(benchmark.questions(), ["one", "two", None], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "question_id": 1,
        "category": "llava_bench_detail",
        "content": (
            "[Context]\nA dog.\nIt runs.\n\n[Question]\nWhat is this, 1?\n\n"
            "[Assistant 1]\nGPT-4 on 1\n\n[End of Assistant 1]\n\n"
            "[Assistant 2]\ntwo\n\n[End of Assistant 2]\n\n"
            "[System]\nRate a detail.\n\n"
        ),
    }
    assert "[Assistant 2]\n\n\n[End" in rows[2]["content"]


@pytest.mark.parametrize(
    ("review", "numbers"),
    [
        ("8 9\nBoth see the cat.", (8, 9)),
        ("8.5,7", (8.5, 7)),
        ("8, 9", (-1, -1)),  # three words, one of them empty
        ("8 9 10", (-1, -1)),
        ("8", (-1, -1)),
        ("Assistant 1: 8\n9 9", (-1, -1)),
        ("eight nine", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_numbers_of_a_review(review, numbers):
    assert ratings(review) == numbers


def test_scores_by_hand(benchmark, tmp_path):
    questions = benchmark.questions()
    answers = ["one", "two", "three"]
    assert benchmark.score(questions, answers, tmp_path).samples == [None] * 3
    reviews = ["8 6\nGood.", "10 5", "none"]
    rows = [{"question_id": n, "content": review} for n, review in enumerate(reviews)]
    write_jsonl(tmp_path / "reviews.jsonl", rows[::-1])
    scores = benchmark.score(questions, answers, tmp_path)
    assert scores.samples == [0.6, 0.5, 0]
    assert scores.metrics == pytest.approx(
        {
            "score": 100 * (6 + 5 - 1) / (8 + 10 - 1),
            "score/conv": 100 * (6 - 1) / (8 - 1),
            "score/detail": 50,
        }
    )
    scores = benchmark.score(questions[:2], ["one", None], tmp_path)
    assert scores.samples == [0.6, 0]
    assert scores.metrics["score"] == pytest.approx(100 * 6 / 18)


@pytest.mark.parametrize(
    "review", ["nan nan", "inf 5", "5 -inf", "1e400 5", "-3 5", "11 5", "5 10.5", "nan 5\nGood."]
)
def test_ratings_that_are_not_from_1_to_10_are_refused(review, benchmark, tmp_path):
    rows = [{"question_id": n, "content": text} for n, text in enumerate(["8 9", review, "7 7"])]
    write_jsonl(tmp_path / "reviews.jsonl", rows)
    with pytest.raises(DataError, match=r"reviews.jsonl: the review of question 1 .* from 1 to 10"):
        benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)


def test_reviews_without_ratings_are_counted_and_logged(benchmark, tmp_path, caplog):
    rows = [{"question_id": n, "content": text} for n, text in enumerate(["8 9", "8 9 7", ""])]
    write_jsonl(tmp_path / "reviews.jsonl", rows)
    benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)
    assert "2 reviews do not begin with two numbers" in caplog.text
    assert "questions 1, 2." in caplog.text


def test_two_reviews_of_a_question_are_refused(benchmark, tmp_path):
    texts = [(0, "8 9"), (1, "1 2"), (2, "3 4"), (0, "9 9")]
    rows = [{"question_id": n, "content": text} for n, text in texts]
    write_jsonl(tmp_path / "reviews.jsonl", rows)
    with pytest.raises(DataError, match="has question 0 twice, with different content"):
        benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)


def test_damaged_reviews_are_named(benchmark, tmp_path):
    path = tmp_path / "reviews.jsonl"
    write_jsonl(path, [{"question_id": 0, "content": "8 9"}, {"question_id": 1}])
    with pytest.raises(DataError, match=r"reviews.jsonl, line 2: field 'content' \(str\) is miss"):
        benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)
    write(path, '{"question_id": 0, "content": "8 9"}\n')
    with pytest.raises(DataError, match=r"reviews.jsonl has no line for question 1; judge it"):
        benchmark.score(benchmark.questions(), ["a", "b", "c"], tmp_path)
