"""What every benchmark keeps to. `make(root)` of its test file writes its tiny official files."""

import json
from importlib import import_module

import pytest

from dpn import benchmarks
from dpn.data.tokenizer import train_tokenizer
from dpn.evaluation import BenchmarkExam
from dpn.processor import DPNProcessor

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(params=benchmarks.names())
def name(request):
    return request.param


@pytest.fixture
def tests(name):
    return import_module(f"tests.benchmarks.test_{name}")


def test_all_files_are_asked_for(name, tests, tmp_path):
    benchmark = benchmarks.build(name, root=tmp_path)
    assert benchmark.name == name
    assert benchmark.missing() == list(benchmark.files) != []
    assert all(file.where for file in benchmark.files)
    tests.make(tmp_path)
    assert benchmark.missing() == []


def test_questions_can_be_asked_and_written_down(name, tests, tmp_path):
    tests.make(tmp_path)
    questions = benchmarks.build(name, root=tmp_path).questions()
    assert len(questions) >= 3
    for question in questions:
        assert question.prompt
        assert "<image>" not in question.prompt
        assert all(image().mode == "RGB" for image in question.images)
        json.dumps([question.id, question.reference, question.category, dict(question.meta)])


@pytest.fixture(scope="module")
def processor():
    return DPNProcessor(train_tokenizer([SYSTEM]), image_size=56)


def test_a_model_sees_the_words_of_llavas_conversation(name, tests, tmp_path, processor):
    """`vicuna_v1`, images first, and `<ROUTER>` where there is something to route."""
    tests.make(tmp_path)
    questions = benchmarks.build(name, root=tmp_path).questions()
    exam = BenchmarkExam(name, questions, processor)
    for index, question in enumerate(questions):
        sample = exam.make(index)
        count = len(question.images)
        asked = "<image>\n" * count + question.prompt + ("<ROUTER>" if count else "")
        seen = processor.tokenizer.decode(sample.input_ids)
        assert seen == f"<s>{SYSTEM} USER: {asked} ASSISTANT:"
        assert [image.shape for image in sample.images] == [(3, 56, 56)] * count
        assert name in exam.where(index)


def test_answers_are_written_in_llavas_format(name, tests, tmp_path):
    tests.make(tmp_path)
    benchmark = benchmarks.build(name, root=tmp_path)
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


def test_nothing_answered_is_worth_nothing(name, tests, tmp_path):
    tests.make(tmp_path)
    benchmark = benchmarks.build(name, root=tmp_path)
    questions = benchmark.questions()
    scores = benchmark.score(questions, [None] * len(questions), tmp_path)
    assert set(scores.samples) <= {0.0, None}
    if scores.metrics:
        assert scores.metrics[benchmark.headline] == 0


def test_scores_are_the_same_for_some_of_the_questions(name, tests, tmp_path):
    """What one answer is worth does not depend on which others there are."""
    tests.make(tmp_path)
    benchmark = benchmarks.build(name, root=tmp_path)
    questions = benchmark.questions()
    answers = ["A"] * len(questions)
    whole = benchmark.score(questions, answers, tmp_path).samples
    assert benchmark.score(questions[:1], answers[:1], tmp_path).samples == whole[:1]
