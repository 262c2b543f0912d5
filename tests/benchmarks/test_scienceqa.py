import pytest

from dpn.benchmarks import build
from dpn.benchmarks.scienceqa import letter
from tests.benchmarks.files import picture, write_json

#: Id, whether it has a picture, number of choices and of the right one.
QUESTIONS = [("4", True, 2, 1), ("5", False, 4, 3), ("11", True, 3, 0), ("12", True, 5, 4)]


def make(root):
    folder = root / "scienceqa"
    rows, problems = [], {"1": {"choices": ["a"], "answer": 0}}  # of another split
    for name, has_picture, choices, answer in QUESTIONS:
        value = f"Context: N/A\nWhat is {name}?\nA. one\nB. two"
        row = {"id": name}
        if has_picture:
            row["image"] = f"{name}/image.png"
            value += "\n<image>"
            picture(folder / "images" / "test" / name / "image.png")
        row["conversations"] = [{"from": "human", "value": value}, {"from": "gpt", "value": "A"}]
        rows.append(row)
        problems[name] = {"choices": ["x"] * choices, "answer": answer}
    write_json(folder / "llava_test_CQM-A.json", rows)
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": ["1"], "test": list(problems)[1:]})


DAMAGED = {
    "scienceqa/llava_test_CQM-A.json": [
        (lambda rows: rows[1].update(id=5), "entry 2: field 'id' is 5; it must be str"),
        (lambda rows: rows[1].update(id="6"), "do not belong together: '5' is in only one"),
        (lambda rows: rows[1].update(conversations=[]), "entry 2: it must be an object, not None"),
        (
            lambda rows: rows[2]["conversations"][0].pop("value"),
            r"CQM-A.json, entry 3: field 'value' \(str\) is missing",
        ),
    ],
    "scienceqa/problems.json": [
        (lambda rows: rows["11"].update(choices="ab"), "entry '11': field 'choices' is 'ab'"),
        (
            lambda rows: rows["11"].update(answer=3),
            "entry '11': field 'answer' is 3; there are 3 ch",
        ),
    ],
    "scienceqa/pid_splits.json": [
        (lambda splits: splits.pop("test"), r"entry 'test': field 'test' \(list\) is missing"),
        (lambda splits: splits.update(test=["9"]), "problems.json lacks problem '9' of"),
    ],
}


def test_prompt_picture_and_answer_of_each_question(benchmark):
    questions = benchmark.questions()
    assert questions[0].prompt == (
        "Context: N/A\nWhat is 4?\nA. one\nB. two"
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert [(q.id, len(q.images), q.reference) for q in questions] == [
        ("4", 1, "B"),
        ("5", 0, "D"),
        ("11", 1, "A"),
        ("12", 1, "E"),
    ]


@pytest.mark.parametrize(
    ("answer", "llava", "llava_hr"),
    [
        ("B", "B", "B"),
        ("B. two", "B", "B"),
        ("B.", None, None),
        ("B.two", None, "B"),
        ("B) two", None, "B"),
        ("Both of them", None, "B"),
        ("F. two", None, None),
        ("I think The answer is C.", "C", "C"),
        ("The answer is C", None, None),  # the rule wants a character after the letter
        ("The answer is C. The answer is D.", None, None),
        ("b", None, None),
        ("", None, None),
        ("AB", None, None),
    ],
)
def test_letter_of_an_answer(answer, llava, llava_hr):
    assert letter(answer) == llava
    assert letter(answer, "llava_hr") == llava_hr


def test_scores_by_hand(benchmark, tmp_path):
    questions = benchmark.questions()
    scores = benchmark.score(questions, ["B", "D. x", "A) one", None], tmp_path)
    assert scores.samples == [1, 1, 0, 0]
    assert scores.metrics == pytest.approx(
        {"accuracy": 50, "accuracy/image": 100 / 3, "accuracy/text": 100}
    )
    relaxed = build("scienceqa", root=tmp_path, parse="llava_hr")
    assert relaxed.score(questions, ["B", "D. x", "A) one", None], tmp_path).samples == [1, 1, 1, 0]


def test_a_letter_beyond_the_choices_is_wrong(benchmark, tmp_path):
    questions = benchmark.questions()
    assert benchmark.score(questions[:1], ["C"], tmp_path).metrics["accuracy"] == 0


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parse='hr' is unknown; choose llava or llava_hr"):
        build("scienceqa", root=tmp_path, parse="hr")
