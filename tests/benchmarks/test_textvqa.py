import pytest

from tests.benchmarks.files import picture, write_json, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
#: Picture, prompt, question of the annotation, answers of ten people.
QUESTIONS = [
    (
        "a1",
        "What brand is it?\nReference OCR token: DAKOTA, DIGITAL",
        "What brand is it?",
        ["Dakota"] * 3 + ["dakota digital"] * 7,
    ),
    (
        "a1",
        "Reference OCR token: \nHow much is IT?",
        "How much is it?",
        ["$1,000"] * 9 + ["unknown"],
    ),
    ("b2", "Who won?", "who won?", ["Two men"] * 10),
]


def make(root):
    folder = root / "textvqa"
    rows, data = [], []
    for image, prompt, question, answers in QUESTIONS:
        picture(folder / "train_images" / f"{image}.jpg")
        rows.append({"question_id": image, "image": f"{image}.jpg", "text": prompt + SHORT})
        data.append({"image_id": image, "question": question, "answers": answers})
    write_jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data})


DAMAGED = {
    "textvqa/llava_textvqa_val_v051_ocr.jsonl": [
        ({"text": None}, r"ocr.jsonl, line 3: field 'text' \(str\) is missing"),
        ({"text": f"Who lost?{SHORT}"}, "ocr.jsonl: question b2 asks 'who lost\\?'"),
        ({"question_id": "a1"}, r"question a1 asks 'who won\?', which .*val.json does not"),
    ],
    "textvqa/TextVQA_0.5.1_val.json": [
        (
            lambda value: value["data"][1]["answers"].pop(),
            "TextVQA_0.5.1_val.json, entry 2: field 'answers' must hold ten texts",
        ),
        (
            lambda value: value["data"][1].update(answers=[1] * 10),
            "TextVQA_0.5.1_val.json, entry 2: field 'answers' must hold ten",
        ),
        (
            lambda value: value["data"][1].update(image_id=5),
            "TextVQA_0.5.1_val.json, entry 2: field 'image_id' is 5; it must be str",
        ),
    ],
}


def test_prompt_and_reference_of_each_form(benchmark):
    questions = benchmark.questions()
    assert questions[0].prompt == (
        "What brand is it?\nReference OCR token: DAKOTA, DIGITAL"
        "\nAnswer the question using a single word or phrase."
    )
    assert [question.reference for question in questions] == [row[3] for row in QUESTIONS]


@pytest.mark.parametrize(
    ("answers", "samples", "accuracy"),
    [
        (["dakota.", "$1000", "2 men"], [0.9, 1, 1], 290 / 3),
        (["DAKOTA digital", "unknown", None], [1, 0.3, 0], 130 / 3),
        (["", "1000", "the two-men"], [0, 0, 1], 100 / 3),
    ],
)
def test_scores_by_hand(benchmark, tmp_path, answers, samples, accuracy):
    scores = benchmark.score(benchmark.questions(), answers, tmp_path)
    assert scores.samples == pytest.approx(samples)
    assert scores.metrics == pytest.approx({"accuracy": accuracy})
