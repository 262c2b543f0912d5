import json

import pytest

from dpn.benchmarks import build
from dpn.benchmarks.llava_bench import ratings
from dpn.data.batch import DataError
from tests.benchmarks.files import change, damage, picture, write, write_json, write_jsonl

#: Category and caption of each question.
QUESTIONS = [("conv", "A cat."), ("detail", ["A dog.", "It runs."]), ("conv", "A cat.")]


def make(root):
    folder = root / "llava-bench-in-the-wild"
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


@pytest.fixture
def llava_bench(tmp_path):
    make(tmp_path)
    return build("llava_bench", root=tmp_path)


def test_prompts_have_no_suffix(llava_bench):
    questions = llava_bench.questions()
    assert [q.prompt for q in questions] == [f"What is this, {n}?" for n in range(3)]
    assert questions[1].reference == "GPT-4 on 1"


def test_what_the_judge_reads(llava_bench, tmp_path):
    llava_bench.upload(llava_bench.questions(), ["one", "two", None], tmp_path)
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


def test_scores_by_hand(llava_bench, tmp_path):
    questions = llava_bench.questions()
    answers = ["one", "two", "three"]
    assert llava_bench.score(questions, answers, tmp_path).samples == [None] * 3
    reviews = ["8 6\nGood.", "10 5", "none"]
    rows = [{"question_id": n, "content": review} for n, review in enumerate(reviews)]
    write_jsonl(tmp_path / "reviews.jsonl", rows[::-1])
    scores = llava_bench.score(questions, answers, tmp_path)
    assert scores.samples == [0.6, 0.5, 0]
    assert scores.metrics == pytest.approx(
        {
            "score": 100 * (6 + 5 - 1) / (8 + 10 - 1),
            "score/conv": 100 * (6 - 1) / (8 - 1),
            "score/detail": 50,
        }
    )
    scores = llava_bench.score(questions[:2], ["one", None], tmp_path)
    assert scores.samples == [0.6, 0]
    assert scores.metrics["score"] == pytest.approx(100 * 6 / 18)


def test_damaged_reviews_are_named(llava_bench, tmp_path):
    path = tmp_path / "reviews.jsonl"
    write_jsonl(path, [{"question_id": 0, "content": "8 9"}, {"question_id": 1}])
    with pytest.raises(DataError, match=r"reviews.jsonl, line 2: field 'content' \(str\) is miss"):
        llava_bench.score(llava_bench.questions(), ["a", "b", "c"], tmp_path)
    write(path, '{"question_id": 0, "content": "8 9"}\n')
    with pytest.raises(DataError, match=r"reviews.jsonl has no row for question 1; judge it"):
        llava_bench.score(llava_bench.questions(), ["a", "b", "c"], tmp_path)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("questions.jsonl", {"text": None}, r"questions.jsonl, line 3: field 'text' \(str\) is mi"),
        (
            "questions.jsonl",
            {"category": "fun"},
            "question 2 has the category 'fun'; rule.json has",
        ),
        ("questions.jsonl", {"image": "b.jpg"}, "context.jsonl do not belong together, 'b.jpg' is"),
        ("context.jsonl", {"caption": 3}, "context.jsonl, line 2: field 'caption' is 3"),
        ("answers_gpt4.jsonl", {"question_id": 9}, "answers_gpt4.jsonl do not belong together, 2"),
    ],
)
def test_a_damaged_file_is_named(llava_bench, file, changes, sentence):
    damage(llava_bench.root / "llava-bench-in-the-wild" / file, **changes)
    with pytest.raises(DataError, match=sentence):
        llava_bench.questions()


def test_a_damaged_rule_is_named(llava_bench):
    path = llava_bench.root / "llava-bench-in-the-wild" / "rule.json"
    change(path, lambda rules: rules["llava_bench_conv"].pop("prompt"))
    with pytest.raises(DataError, match=r"entry 'llava_bench_conv': field 'prompt' \(str\) is mis"):
        llava_bench.questions()
