"""Contract tests of all benchmarks, on small official files that each benchmark's test file writes.

A benchmark's test file, tests/benchmarks/test_NAME.py, has a function `make(root)` that writes
them. It may have `DAMAGED`: per file, edits and the error sentence that each must cause; and, for
`split=val`, `make_val` and `DAMAGED_VAL`. A benchmark with `make_val` has a usual split that a
server scores.
"""

import json
from importlib import import_module
from importlib.util import find_spec

import pytest

from dpn import benchmarks
from dpn.data.batch import DataError
from dpn.data.tokenizer import train_tokenizer
from dpn.inference.evaluation import BenchmarkQuestions
from dpn.model import DPNProcessor
from tests.benchmarks.files import change, damage

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def module_of(name):
    """The benchmark's test file, None if there is none."""
    module = f"tests.benchmarks.test_{name}"
    return import_module(module) if find_spec(module) else None


def damages():
    """Yield benchmark, split, damaged file, kind of damage and expected error message."""
    for split, table in (({}, "DAMAGED"), ({"split": "val"}, "DAMAGED_VAL")):
        for name in benchmarks.names():
            for file, cases in getattr(module_of(name), table, {}).items():
                yield from ((name, split, file, how, sentence) for how, sentence in cases)


FOR_A_SERVER = [name for name in benchmarks.names() if hasattr(module_of(name), "make_val")]


@pytest.fixture(params=benchmarks.names())
def name(request):
    return request.param


@pytest.fixture
def tests(name):
    module = module_of(name)
    if not hasattr(module, "make"):
        pytest.fail(f"Write tests/benchmarks/test_{name}.py with a function make(root).")
    return module


@pytest.fixture
def benchmark(name, tests, tmp_path):
    tests.make(tmp_path)
    return benchmarks.build(name, root=tmp_path)


def test_all_files_are_asked_for(name, tests, tmp_path):
    benchmark = benchmarks.build(name, root=tmp_path)
    assert benchmark.name == name
    assert benchmark.missing() == list(benchmark.files) != []
    assert all(file.where for file in benchmark.files)
    tests.make(tmp_path)
    assert benchmark.missing() == []


def test_questions_can_be_asked_and_written_down(benchmark):
    questions = benchmark.questions()
    assert len(questions) >= 3
    for question in questions:
        assert question.prompt
        assert "<image>" not in question.prompt
        assert all(image().mode == "RGB" for image in question.images)
        json.dumps([question.id, question.reference, question.category, dict(question.meta)])


@pytest.fixture(scope="module")
def processor():
    return DPNProcessor(train_tokenizer([SYSTEM]), image_size=56)


def test_a_model_sees_the_words_of_llavas_conversation(name, benchmark, processor):
    """`vicuna_v1` with images first, and `<ROUTER>` in samples with images."""
    questions = benchmark.questions()
    question_set = BenchmarkQuestions(name, questions, processor)
    for index, question in enumerate(questions):
        sample = question_set.make(index)
        count = len(question.images)
        asked = "<image>\n" * count + question.prompt + ("<ROUTER>" if count else "")
        seen = processor.tokenizer.decode(sample.input_ids)
        assert seen == f"<s>{SYSTEM} USER: {asked} ASSISTANT:"
        assert [image.shape for image in sample.images] == [(3, 56, 56)] * count
        assert name in question_set.where(index)


def test_answers_are_written_in_llavas_format(benchmark, tmp_path):
    questions = benchmark.questions()
    answers = [None, *(f"Ä {n}" for n in range(1, len(questions)))]
    benchmark.write(questions, answers, tmp_path / "out", "tiny")
    lines = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == answers[1:]
    assert [row["question_id"] for row in rows] == [question.id for question in questions[1:]]
    assert [row["prompt"] for row in rows] == [question.prompt for question in questions[1:]]
    assert len({row["answer_id"] for row in rows}) == len(rows)
    assert {row["model_id"] for row in rows} == {"tiny"}
    assert all(row["metadata"] == {} for row in rows)


def test_missing_answers_score_zero(benchmark, tmp_path):
    questions = benchmark.questions()
    scores = benchmark.score(questions, [None] * len(questions), tmp_path)
    assert set(scores.samples) <= {0.0, None}
    if scores.metrics:
        assert scores.metrics[benchmark.headline] == 0


def test_scores_are_the_same_for_some_of_the_questions(benchmark, tmp_path):
    """The score of an answer does not depend on the other answers; some are correct."""
    questions = benchmark.questions()
    references = [
        q.reference if isinstance(q.reference, list) else [q.reference] for q in questions
    ]
    answers = [*(str(own[0]) for own in references[:-1]), None]
    whole = benchmark.score(questions, answers, tmp_path)
    if whole.metrics:
        assert len(set(whole.samples)) > 1
    alone = []
    for question, answer in zip(questions, answers, strict=True):
        alone += benchmark.score([question], [answer], tmp_path).samples
    assert alone == whole.samples


@pytest.mark.parametrize(("name", "split", "file", "how", "sentence"), damages())
def test_a_damaged_file_is_named(name, split, file, how, sentence, tests, tmp_path):
    (tests.make_val if split else tests.make)(tmp_path)
    if callable(how):
        change(tmp_path / file, how)
    else:
        damage(tmp_path / file, **how)
    with pytest.raises(DataError, match=sentence):
        benchmarks.build(name, root=tmp_path, **split).questions()


@pytest.mark.parametrize("name", FOR_A_SERVER)
def test_splits_scored_by_a_server_have_no_local_scores(benchmark, tmp_path):
    scores = benchmark.score(benchmark.questions(), ["cup", None, "yes"], tmp_path)
    assert scores.metrics == {}
    assert scores.samples == [None] * 3


@pytest.mark.parametrize(("name", "usual"), [("vizwiz", "test"), ("vqav2", "test-dev")])
def test_unknown_splits_are_refused(name, usual, tmp_path):
    with pytest.raises(ValueError, match=f"no split 'train'; choose {usual}, val"):
        benchmarks.build(name, root=tmp_path, split="train")
