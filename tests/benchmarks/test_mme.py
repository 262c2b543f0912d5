import pytest

from dpn.benchmarks.mme import said
from dpn.data.batch import DataError
from tests.benchmarks.files import damage, picture, write, write_jsonl

SHORT = "\nAnswer the question using a single word or phrase."
#: Picture, question, what follows it in the release, label; two in a row belong together.
QUESTIONS = [
    ("code_reasoning/0020.png", "Is a python code shown?", " Please answer yes or no.", "Yes"),
    ("code_reasoning/0020.png", "Is a c++ code shown?", "  Please answer yes or no.", "No"),
    ("artwork/images/7.jpg", "Is this titled sorrow?", " Please answer yes or no.", "Yes"),
    ("artwork/images/7.jpg", "Is this titled joy?", " Please answer yes or no.", "No"),
    ("artwork/images/8.jpg", "Is this a painting?", " Please answer yes or no.", "Yes"),
    ("artwork/images/8.jpg", "Is this a fresco?", " Please answer yes or no.", "No"),
    ("OCR/0001.jpg", "Is the word angie's?", " Please answer yes or no.", "Yes"),
    ("OCR/0001.jpg", "Is the word angle's?", " Please answer yes or no.", "No"),
]


def make(root):
    release = root / "MME" / "MME_Benchmark_release_version"
    labels = {}
    for image, question, tail, label in QUESTIONS:
        picture(release / image)
        folder = image.split("/")[0]
        folder += "/questions_answers_YN" if folder == "artwork" else ""
        name = image.split("/")[-1].split(".")[0]
        path = release / folder / f"{name}.txt"
        labels[path] = labels.get(path, "") + f"{question}{tail}\t{label}\n"
    for path, text in labels.items():
        write(path, text)
    rows = [{"question_id": i, "image": i, "text": q + SHORT} for i, q, _, _ in QUESTIONS]
    write_jsonl(root / "MME" / "llava_mme.jsonl", rows)


DAMAGED = {
    "MME/llava_mme.jsonl": [
        ({"image": None}, r"llava_mme.jsonl, line 8: field 'image' \(str\) is missing"),
        ({"question_id": "poems/1.jpg"}, "question poems/1.jpg has the subtask"),
        ({"question_id": "OCR/9.jpg"}, r"OCR/9.txt does not exist; download the MME release"),
        ({"text": "Is it?"}, r"0001.txt has no question 'Is it\? Please answer yes or no.'"),
    ],
}


def test_prompt_and_label(benchmark):
    questions = benchmark.questions()
    assert questions[0].prompt == (
        "Is a python code shown?\nAnswer the question using a single word or phrase."
    )
    assert [q.reference for q in questions] == [label for *_, label in QUESTIONS]
    assert [q.category for q in questions[::2]] == ["code_reasoning", "artwork", "artwork", "OCR"]


def test_a_question_that_has_the_demand_already(benchmark):
    question = f"{QUESTIONS[-1][1]} Please answer yes or no."
    damage(benchmark.root / "MME" / "llava_mme.jsonl", text=f"{question} {SHORT}")
    last = benchmark.questions()[-1]
    assert (last.reference, last.meta["question"]) == ("No", question)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes", "yes"),
        ("No, it is", "no"),
        ("Not at all", "no"),
        ("eyes no", "yes"),  # four letters, wherever
        ("now yes", "no"),
        ("Well, yes", "other"),
        ("", "other"),
    ],
)
def test_yes_or_no_of_an_answer(answer, word):
    assert said(answer) == word


def test_scores_by_hand(benchmark, tmp_path):
    answers = ["Yes", "Yes", "yes.", "no", "No", "No", "Well", None]
    scores = benchmark.score(benchmark.questions(), answers, tmp_path)
    assert scores.samples == [1, 0, 1, 1, 0, 1, 0, 0]
    assert scores.metrics == {
        "perception": 125,
        "score/artwork": 125,  # 3 of 4 questions, 1 of 2 pictures
        "score/OCR": 0,
        "cognition": 50,
        "score/code_reasoning": 50,
    }


def test_all_right_is_200_for_each_subtask(benchmark, tmp_path):
    answers = [label for *_, label in QUESTIONS]
    metrics = benchmark.score(benchmark.questions(), answers, tmp_path).metrics
    assert (metrics["perception"], metrics["cognition"]) == (400, 200)


def test_subtasks_that_were_not_asked_are_left_out(benchmark, tmp_path):
    metrics = benchmark.score(benchmark.questions()[:1], ["yes"], tmp_path).metrics
    assert metrics == {"cognition": 200, "score/code_reasoning": 200}


def test_results_are_what_the_evaluator_reads(benchmark, tmp_path):
    answers = ["Yes", None, "a\tb\r\nc", "no", "yes", "no", "yes", "no"]
    benchmark.write(benchmark.questions(), answers, tmp_path / "out", "tiny")
    folder = tmp_path / "out" / "results"
    assert sorted(path.name for path in folder.iterdir()) == [
        "OCR.txt",
        "artwork.txt",
        "code_reasoning.txt",
    ]
    assert (folder / "code_reasoning.txt").read_text() == (
        "0020.txt\tIs a python code shown? Please answer yes or no.\tYes\tYes\n"
        "0020.txt\tIs a c++ code shown?  Please answer yes or no.\tNo\t\n"
    )
    lines = (folder / "artwork.txt").read_text().split("\n")
    assert lines[0] == "7.txt\tIs this titled sorrow? Please answer yes or no.\tYes\ta b  c"


def test_a_damaged_label_is_named(benchmark):
    path = benchmark.root / "MME" / "MME_Benchmark_release_version" / "OCR" / "0001.txt"
    path.write_text(f"{path.read_text()}\nIs it?\tMaybe\n")
    with pytest.raises(DataError, match=r"0001.txt, line 4: .* must be a question, a tab and Yes"):
        benchmark.questions()


def test_an_image_has_all_its_questions_once(benchmark):
    """As MME's own `calculation.py` demands."""
    path = benchmark.root / "MME" / "llava_mme.jsonl"
    lines = path.read_text().splitlines()
    write(path, "\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"llava_mme.jsonl and .*0001.txt do not belong together"):
        benchmark.questions()
    write(path, "\n".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match=r"llava_mme.jsonl has question .* twice"):
        benchmark.questions()
