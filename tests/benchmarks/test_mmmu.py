from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets, config

from dpn.benchmarks import build
from dpn.benchmarks._mmmu import chosen, is_right
from dpn.data.batch import DataError
from dpn.data.images import CorruptImageError
from tests.benchmarks.files import picture_bytes, write, write_json

ASK = "\nAnswer with the option's letter from the given choices directly."
FEATURES = Features(
    {name: Value("string") for name in ("id", "question", "options", "question_type")}
    | {"image_1": Image(), "image_2": Image()}
)
#: Id, options and what is right.
QUESTIONS = {
    "Art": [("validation_Art_1", "['a cat', 'a \"dog\"']", "B")],
    "Art_Theory": [
        ("validation_Art_Theory_2", "[]", "1.06"),
        ("validation_Art_Theory_10", "[]", ["oil paint", "oil"]),
    ],
    "Math": [("validation_Math_1", "[\"<img='a.png'>\", \"<img='b.png'>\"]", "A")],
}


def table(subject, **changes):
    rows = [
        {
            "id": name,
            "question": "What is <image 1>?",
            "options": options,
            "question_type": "open" if options == "[]" else "multiple-choice",
            "image_1": {"bytes": picture_bytes(), "path": "1.png"},
            "image_2": None,
        }
        | changes
        for name, options, _ in QUESTIONS[subject]
    ]
    return Dataset.from_list(rows, features=FEATURES)


def write_answers(root):
    truths = {name: truth for rows in QUESTIONS.values() for name, _, truth in rows}
    answers = {
        name: {"question_type": "short-answer", "ground_truth": truth}
        for name, truth in truths.items()
    }
    write_json(root / "MMMU" / "answer_dict_val.json", answers)


def make(root):
    for subject in QUESTIONS:
        table(subject).save_to_disk(str(root / "MMMU" / subject))
    write_answers(root)


def save_as_splits(folder):
    other = table("Art", id="dev_Art_1")
    for subject in QUESTIONS:
        splits = DatasetDict({"validation": table(subject), "dev": other, "test": other})
        splits.save_to_disk(str(folder / subject))


def save_in_one(folder):
    concatenate_datasets([table(subject) for subject in QUESTIONS]).save_to_disk(str(folder))


def save_as_the_hub(folder):
    for subject in QUESTIONS:
        (folder / subject).mkdir(parents=True)
        table(subject).to_parquet(str(folder / subject / "validation-00000-of-00001.parquet"))
        table("Art", id="x").to_parquet(str(folder / subject / "test-00000-of-00001.parquet"))


DAMAGED = {
    "MMMU/answer_dict_val.json": [
        (
            lambda answers: answers["validation_Art_1"].update(ground_truth=3),
            "entry 'validation_Art_1': field 'ground_truth' is 3",
        ),
    ],
}


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    """The cache that datasets makes of parquet files is shared by all users."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_prompts_keep_the_marks_of_spans(benchmark):
    questions = benchmark.questions()
    assert questions[0].prompt == f'What is <image 1>?\n(A) a cat\n(B) a "dog"\n{ASK}'
    assert questions[1].prompt == (
        "What is <image 1>?\nAnswer the question using a single word or phrase."
    )
    assert [(q.id, q.category, q.reference) for q in questions] == [
        ("validation_Art_1", "Art", ["B"]),
        ("validation_Art_Theory_2", "Art_Theory", ["1.06"]),
        ("validation_Art_Theory_10", "Art_Theory", ["oil paint", "oil"]),
        ("validation_Math_1", "Math", ["A"]),
    ]


@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("save", [save_as_splits, save_in_one, save_as_the_hub])
def test_all_layouts_hold_the_same_questions(benchmark, tmp_path, save):
    save(tmp_path / "other" / "MMMU")
    write_answers(tmp_path / "other")
    other = build("mmmu", root=tmp_path / "other").questions()
    ours = benchmark.questions()
    assert [(q.id, q.prompt) for q in other] == [(q.id, q.prompt) for q in ours]
    assert other[2].images[0]().getpixel((0, 0)) == (200, 20, 20)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) or (B)", "B"),  # the last
        ("(A), not B at all", "A"),  # brackets before blanks
        ("A B A", "A"),
        ("I am sure that it is a cat", "A"),
        ("it is a cat", None),  # too short for texts
        ("Some say a cat and some say a dog", "B"),
        ("The picture shows me a DOG today", "B"),
        ("", None),
        ("b", None),
    ],
)
def test_option_of_an_answer(answer, letter):
    assert chosen(answer, {"A": "A cat", "B": "a dog"}) == letter


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("The answer is 1.06.", "1.06", True),
        ("1.058", "1.06", True),  # two places
        ("10.6", "1.06", False),
        ("x = 3 so it costs $1,000", "1000", True),
        ("It is 5\nTherefore 6", "6", True),
        ("A = 5", "5", True),
        ("it is so red = blue", "red", False),  # the shortest tail
        ("it = blue\nso red", "blue", False),  # = counts in the last line alone
        ("Oil paint", "oil", True),
        ("It is an oil", "paint", False),
        ("coil", "o", False),  # one letter wants a blank
        ("the o", "o", True),
        (".5", "5", True),  # full stops at both ends go
        ("The answer is :", "answer", True),  # a mark is no answer
        ("", "x", False),
    ],
)
def test_answers_to_open_questions(answer, truth, right):
    assert is_right(answer, [truth]) is right


def test_scores_by_hand(benchmark, tmp_path):
    scores = benchmark.score(benchmark.questions(), ["(B)", "about 2", "It is oil", None], tmp_path)
    assert scores.samples == [1, 0, 1, 0]
    assert scores.metrics == pytest.approx(
        {
            "accuracy": 50,
            "accuracy/Art": 100,
            "accuracy/Art_Theory": 50,
            "accuracy/Math": 0,
            "accuracy/Art_and_Design": 200 / 3,
            "accuracy/Science": 0,
        }
    )


def test_guesses_depend_on_seed_and_question_alone(benchmark, tmp_path):
    questions = benchmark.questions()
    twin = replace(questions[0], id="validation_Art_2")
    alone, behind, twins = [], [], []
    for seed in range(20):
        seeded = build("mmmu", root=tmp_path, seed=seed)
        alone += seeded.score(questions[:1], ["no idea"], tmp_path).samples
        both = seeded.score([twin, questions[0]], ["no idea"] * 2, tmp_path).samples
        twins.append(both[0])
        behind.append(both[1])
    assert set(alone) == {0, 1}
    assert alone == behind != twins


def test_options_that_are_pictures_are_guessed(benchmark, tmp_path):
    question = benchmark.questions()[3]
    assert question.images == ()
    seeds = [build("mmmu", root=tmp_path, seed=seed) for seed in range(20)]
    assert {s.score([question], ["A"], tmp_path).samples[0] for s in seeds} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"options": "['a', 3]"}, r"question validation_Math_1: field 'options' is \"\['a', 3\]\""),
        ({"options": "'ab'"}, "field 'options' is .*; it must be the text of a list"),
        ({"options": "__import__('os')"}, "field 'options' is .*; it must be the text of a list"),
        ({"question": None}, r"MMMU, row 4: field 'question' \(str\) is missing"),
        ({"id": "validation_Math_2"}, "together: 'validation_Math_1' is in only one of them"),
    ],
)
def test_a_damaged_question_is_named(benchmark, changes, sentence):
    table("Math", **changes).save_to_disk(str(benchmark.root / "MMMU" / "Math"))
    with pytest.raises(DataError, match=sentence):
        benchmark.questions()


@pytest.mark.parametrize("cell", [None, {"bytes": b"no picture", "path": None}])
def test_a_damaged_picture_is_named(benchmark, cell):
    table("Art", image_1=cell).save_to_disk(str(benchmark.root / "MMMU" / "Art"))
    with pytest.raises(CorruptImageError, match="question validation_Art_1: the image is corrupt"):
        benchmark.questions()[0].images[0]()


@pytest.mark.usefixtures("_own_cache")
def test_a_folder_without_data_is_named(tmp_path):
    write_answers(tmp_path)
    benchmark = build("mmmu", root=tmp_path)
    with pytest.raises(DataError, match=r"MMMU holds no <subject>/validation-\*.parquet"):
        benchmark.questions()
    write(tmp_path / "MMMU" / "Art" / "validation-0.parquet", "version https://git-lfs")
    with pytest.raises(DataError, match="MMMU cannot be read"):
        benchmark.questions()
