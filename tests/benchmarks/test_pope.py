import json

import pytest

from dpn.benchmarks.pope import yes_or_no
from dpn.data.batch import DataError
from tests.benchmarks.files import picture, write, write_jsonl

#: Category, object and label; the questions of a category are not adjacent.
QUESTIONS = [
    ("adversarial", "dog", "no"),
    ("random", "cat", "yes"),
    ("adversarial", "car", "yes"),
    ("popular", "tree", "yes"),
    ("adversarial", "sky", "no"),
]


def make(root):
    rows, labels = [], {"adversarial": [], "random": [], "popular": []}
    for number, (category, thing, label) in enumerate(QUESTIONS):
        text = f"Is there a {thing} in the image?"
        image = f"COCO_val2014_{number:012}.jpg"
        picture(root / "pope" / "val2014" / image)
        prompt = f"{text}\nAnswer the question using a single word or phrase."
        rows.append({"question_id": number, "image": image, "text": prompt, "category": category})
        labels[category].append({"question_id": 1, "image": image, "text": text, "label": label})
    write_jsonl(root / "pope" / "llava_pope_test.jsonl", rows)
    for category, lines in labels.items():
        write_jsonl(root / "pope" / "coco" / f"coco_pope_{category}.json", lines)


DAMAGED = {
    "pope/llava_pope_test.jsonl": [
        ({"text": None}, r"llava_pope_test.jsonl, line 5: field 'text' \(str\) is missing"),
        ({"text": 3}, r"line 5: field 'text' is 3; it must be str"),
        (
            {"category": "rare"},
            "question 4 has the category 'rare'; it must be one of random",
        ),
        (
            {"category": "random"},
            "coco_pope_random.json do not belong together: .*POPE at commit e3e39262",
        ),
        ({"image": "9.jpg"}, "do not belong together: .9.jpg., .Is there a sky"),
    ],
    "pope/coco/coco_pope_adversarial.json": [
        ({"label": "maybe"}, "entry 3: label 'maybe' must be yes or no"),
    ],
}


def test_prompt_and_label_of_each_question(benchmark):
    questions = benchmark.questions()
    assert questions[1].prompt == (
        "Is there a cat in the image?\nAnswer the question using a single word or phrase."
    )
    assert [(q.category, q.reference) for q in questions] == [
        (c, label) for c, _, label in QUESTIONS
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("No", "no"),
        ("no.", "no"),
        ("There is not, I think", "no"),
        ("No, there is none", "no"),
        ("Yes. But no cat", "yes"),  # only the first sentence counts
        ("NO", "yes"),  # not one of the words
        ("Nothing", "yes"),
        ("", "yes"),
        ("a\nno", "yes"),  # cut at blanks alone
    ],
)
def test_words_that_mean_no(answer, said):
    assert yes_or_no(answer) == said


def test_labels_belong_to_image_and_text_and_not_to_a_line(benchmark, tmp_path):
    path = tmp_path / "pope" / "coco" / "coco_pope_adversarial.json"
    want, lines = [q.reference for q in benchmark.questions()], path.read_text().splitlines()
    write(path, "\n".join([*lines[::-1], lines[0]]))  # another order, and a line twice
    assert [q.reference for q in benchmark.questions()] == want
    tree = json.loads(lines[0]) | {"text": "Is there a tree in the image?"}
    for other in ([json.dumps(tree), *lines], lines[1:], []):
        write(path, "\n".join(other))
        with pytest.raises(DataError, match=r"llava_pope_test.jsonl and .*adversarial.json do not"):
            benchmark.questions()
    write(path, "\n".join([*lines, lines[0].replace('"no"', '"yes"')]))
    with pytest.raises(DataError, match=r"adversarial.json has question .* twice, with different"):
        benchmark.questions()


def test_scores_by_hand(benchmark, tmp_path):
    answers = ["Yes", "yes", "Yes, a car.", None, "no"]
    scores = benchmark.score(benchmark.questions(), answers, tmp_path)
    assert scores.samples == [0, 1, 1, 0, 1]
    third = 100 / 3
    assert scores.metrics == pytest.approx(
        {
            "accuracy/random": 100,
            "precision/random": 100,
            "recall/random": 100,
            "f1/random": 100,
            "yes_ratio/random": 100,
            **dict.fromkeys(["accuracy/popular", "precision/popular", "recall/popular"], 0),
            **dict.fromkeys(["f1/popular", "yes_ratio/popular"], 0),
            "accuracy/adversarial": 2 * third,
            "precision/adversarial": 50,
            "recall/adversarial": 100,
            "f1/adversarial": 2 * third,
            "yes_ratio/adversarial": 2 * third,
            "accuracy": (100 + 0 + 2 * third) / 3,
            "f1": (100 + 0 + 2 * third) / 3,
        }
    )
