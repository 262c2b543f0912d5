"""End-to-end tests of `dpn.eval` on benchmarks."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dpn import inference
from dpn.benchmarks.gqa import GQA
from dpn.common.errors import FileError
from dpn.common.files import read_json, read_rows
from dpn.config.compose import compose
from dpn.eval import evaluate
from dpn.inference.questions import AnswerError, Journal, fingerprint
from dpn.runs.folder import RunError
from dpn.runs.request import ConfigError
from dpn.runs.signals import Interrupted
from dpn.train import train
from tests.app.conftest import tiny_run, without_times
from tests.benchmarks import test_gqa, test_mm_vet, test_pope


@pytest.fixture
def world(tmp_path):
    """Root folder of the benchmarks; it only holds POPE."""
    test_pope.make(tmp_path / "files")
    return tmp_path / "files"


@pytest.fixture
def ask(finished, world, tmp_path):
    """Function that evaluates the run's model folder with further overrides."""

    def run(*overrides, names="pope"):
        paths = [f"data_root={world}", f"paths.output_root={tmp_path / 'out'}"]
        common = [f"run={finished / 'model'}", f"benchmarks=[{names}]", *paths]
        return evaluate(compose("eval", [*common, "max_new_tokens=3", *overrides]))

    return run


@pytest.fixture
def broken(monkeypatch):
    """Make the model fail or be interrupted at the n-th batch."""
    answer = inference.answer

    def install(number, error):
        asked = []

        def failing(model, processor, inputs, *args, **kwargs):
            asked.append(len(inputs["input_ids"]))
            if len(asked) == number:
                raise error
            return answer(model, processor, inputs, *args, **kwargs)

        monkeypatch.setattr(inference, "answer", failing)
        return asked

    return install


def test_files_and_numbers_of_a_benchmark(ask, finished, figures):
    folder = ask("overlays=2")
    rows = read_rows(folder / "rows.jsonl")
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["family"] for row in rows[:2]] == ["adversarial", "random"]
    assert {row["benchmark"] for row in rows} == {"pope"}
    written = read_rows(folder / "pope" / "answers.jsonl")
    assert [row["text"] for row in written] == [row["answer"] for row in rows]
    model, processor = inference.load(finished, "cpu")
    images = sorted((folder.parents[2] / "files" / "pope" / "val2014").iterdir())
    for row, image in zip(rows, images, strict=True):
        found = inference.ask(model, processor, row["prompt"], [Image.open(image)], 3)
        assert found["answer"] == row["answer"]
        assert found["route"] == row["route"]
    metrics = read_json(folder / "metrics.json")
    right = [row["score"] for row in rows if row["family"] == "adversarial"]
    assert metrics["pope/accuracy/adversarial"] == pytest.approx(100 * sum(right) / 3)
    assert 0 < metrics["pope/visual_macs_ratio"] == metrics["cost/visual_macs_ratio"] <= 1
    assert metrics["time/samples_per_s"] > 0
    assert metrics["memory/peak_gib"] > 0.05
    page = (folder / "report.md").read_text()
    assert "| pope | 5 | f1 |" in page
    assert "figures/overlays/pope-01.png" in page
    assert len(list((folder / "figures" / "overlays").iterdir())) == 2


def test_batches_and_limits_change_no_answer(ask):
    answers = {}
    for size in (1, 2, 5):
        folder = ask(f"batch_size={size}", "overlays=0")
        answers[size] = [row["answer"] for row in read_rows(folder / "rows.jsonl")]
    assert answers[1] == answers[2] == answers[5]
    some = read_rows(ask("limit=3", "overlays=0") / "rows.jsonl")
    assert [row["answer"] for row in some] == answers[5][:3]


@pytest.mark.slow
def test_missing_benchmarks_are_reported_and_asked_later(ask, world, figures, caplog):
    folder = ask(names="gqa,pope")
    assert {row["benchmark"] for row in read_rows(folder / "rows.jsonl")} == {"pope"}
    assert "gqa was skipped because files are missing:" in caplog.text
    assert f"{world / 'gqa' / 'llava_gqa_testdev_balanced.jsonl'}: eval.zip" in caplog.text
    assert list(read_json(folder / "status.json")["missing"]) == ["gqa"]
    test_gqa.make(world)
    assert ask(names="gqa,pope") == folder
    assert {row["benchmark"] for row in read_rows(folder / "rows.jsonl")} == {"gqa", "pope"}
    assert read_json(folder / "status.json")["missing"] == {}
    assert "gqa/accuracy" in read_json(folder / "metrics.json")


def test_only_missing_files_is_an_error(ask):
    with pytest.raises(RunError, match="the files of all benchmarks are missing"):
        ask(names="gqa")


@pytest.mark.slow
def test_an_interrupted_evaluation_continues(ask, broken, monkeypatch):
    whole = without_times(read_rows(ask("batch_size=2", "seed=1") / "rows.jsonl"))
    broken(2, Interrupted("SIGTERM"))
    with pytest.raises(Interrupted):
        ask("batch_size=2")
    monkeypatch.undo()
    asked = broken(99, None)
    folder = ask("batch_size=2")
    assert asked == [2, 1]
    assert without_times(read_rows(folder / "rows.jsonl")) == whole


def test_a_broken_image_is_named_and_the_others_are_kept(ask, world, broken):
    image = world / "pope" / "val2014" / "COCO_val2014_000000000003.jpg"
    content = image.read_bytes()
    image.write_bytes(content[:50])
    with pytest.raises(RunError, match=r"1 of 5 questions of pope .*question 3: .*3.jpg is corr"):
        ask()
    image.write_bytes(content)
    asked = broken(99, None)
    folder = ask()
    assert asked == [1]
    assert len(read_rows(folder / "rows.jsonl")) == 5


def test_a_failing_model_is_not_an_empty_answer(ask, broken):
    broken(1, RuntimeError("out of memory"))
    with pytest.raises(AnswerError, match=r"failed at pope, question .*; pope, .*out of memory"):
        ask("batch_size=2")


def test_a_damaged_question_does_not_stop_the_others(ask, world):
    test_gqa.make(world)
    path = world / "pope" / "llava_pope_test.jsonl"
    path.write_text(path.read_text() + '{"question_id": 7}\n')
    with pytest.raises(RunError, match=r"llava_pope_test.jsonl, line 6: field 'image'"):
        ask(names="pope,gqa")
    (folder,) = (world.parent / "out" / "eval").iterdir()
    assert {row["benchmark"] for row in read_rows(folder / "rows.jsonl")} == {"gqa"}
    assert read_json(folder / "status.json")["status"] == "failed"


@pytest.mark.slow
def test_a_benchmark_that_fails_does_not_stop_the_others(ask, world, monkeypatch, caplog):
    """Whatever is raised, at any step; the traceback of what is not a sentence is logged."""
    test_gqa.make(world)
    (world / "gqa" / "data" / "testdev_balanced_questions.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(RunError, match=r"testdev_balanced_questions.json is not UTF-8 text"):
        ask(names="gqa,pope")
    assert not caplog.records or "Traceback" not in caplog.text
    (folder,) = (world.parent / "out" / "eval").iterdir()
    assert {row["benchmark"] for row in read_rows(folder / "rows.jsonl")} == {"pope"}
    for step in ("questions", "upload", "score"):
        monkeypatch.setattr(GQA, step, lambda *args: 1 / 0)
        with pytest.raises(RunError, match=r"gqa cannot be evaluated \(ZeroDivisionError: "):
            ask(names="gqa,pope")
        monkeypatch.undo()
        assert "Traceback" in caplog.text
        caplog.clear()
        (world / "gqa" / "data" / "testdev_balanced_questions.json").unlink(missing_ok=True)
        test_gqa.make(world)


def test_what_a_judge_sends_back_is_scored(ask, world, finished):
    test_mm_vet.make(world)
    folder = ask(names="mm_vet")
    assert "mm_vet/score" not in read_json(folder / "metrics.json")
    assert "not scored here" in (folder / "report.md").read_text()
    said = read_json(folder / "mm_vet" / "predictions.json")
    grades = {key: {"model": "judge", "content": ["1.0"], "score": [1.0]} for key in said}
    (folder / "mm_vet" / "grades.json").write_text(json.dumps(grades))
    assert ask(names="mm_vet") == folder
    assert read_json(folder / "metrics.json")["mm_vet/score"] == 100


@pytest.mark.slow
def test_against_another_model(ask, finished, squares, tmp_path):
    plain = train(compose("train", [*tiny_run(squares, tmp_path / "plain"), "router=none"]))
    theirs = evaluate(compose("eval", [f"run={plain}"]))
    mine = evaluate(compose("eval", [f"run={finished}", f"against={theirs}"]))
    page = (mine / "report.md").read_text()
    assert "## Against another model" in page
    assert f"than {theirs}" in page


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("benchmarks=[pop]", "There is no benchmark `pop`; did you mean `pope`"),
        ("benchmarks=[]", "is empty; name at least one"),
        ("+settings.pope.split=val", "`settings.pope.split` is not a setting"),
        ("+settings.gqa.split=val", "`settings.gqa` belongs to none of"),
        ("limit=0", "`limit=0` is not possible; it must be at least 1"),
        ("generation.num_beams=x", "`generation.num_beams=x`"),
        ("against=nowhere", "`against=nowhere` contains no rows.jsonl"),
    ],
)
def test_mistakes_are_reported(ask, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ask(override)


def test_beams_stops_and_sampling(finished, squares):
    model, processor = inference.load(finished, "cpu")
    image = [Image.open(squares / "val-0.png")]
    plain = inference.ask(model, processor, "Which colour?", image, 6)
    beams = inference.ask(model, processor, "Which colour?", image, 6, num_beams=3)
    assert beams["rows"] == plain["rows"]
    assert beams["prefill_flops"] == plain["prefill_flops"]

    def sampled(stop=()):
        torch.manual_seed(0)
        options = {"do_sample": True, "temperature": 5.0, "min_new_tokens": 12, "stop": stop}
        return inference.ask(model, processor, "Which colour?", image, 12, **options)

    text, tokens = (sampled()[key] for key in ("answer", "new_tokens"))
    stop = re.search("[a-z]{2}", text)[0]
    cut = sampled([stop])
    assert cut["answer"] == text.partition(stop)[0].strip() != text
    assert cut["new_tokens"] < tokens == 12


def test_an_incomplete_line_is_asked_again(tmp_path):
    journal = Journal(tmp_path, "questions")
    journal.add({0: {"answer": "a"}})
    journal.add({1: {"answer": "b"}, 2: {"answer": "c"}})
    path = journal.path
    path.write_text(path.read_text()[:-4])
    assert sorted(Journal(tmp_path, "questions").read()) == [0, 1]
    Journal(tmp_path, "questions").add({2: {"answer": "d"}})
    assert Journal(tmp_path, "questions").read()[2] == {"answer": "d"}
    assert Journal(tmp_path, "other").read() == {}


def test_fingerprints_change_with_content(tmp_path):
    for name, content in (("a", b"0" * 3_000_000), ("b", b"0" * 1_500_000 + b"1" * 1_500_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(content)
    prints = [fingerprint(tmp_path / name) for name in ("a", "b")]
    assert prints[0] != prints[1]
    assert fingerprint(tmp_path / "a") == prints[0]
    assert fingerprint("x", [1, "y"]) != fingerprint("x", [1, "z"])


@pytest.mark.slow
def test_two_processes_answer_as_one(ask, finished, world, tmp_path):
    alone = ask()
    overrides = [f"run={finished / 'model'}", "benchmarks=[pope]", f"data_root={world}"]
    overrides += ["max_new_tokens=3", f"paths.output_root={tmp_path / 'two'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "-m", "dpn.eval", *overrides]
    subprocess.run(command, check=True, env=environment, timeout=300)
    (together,) = (tmp_path / "two" / "eval").iterdir()
    one, two = (without_times(read_rows(f / "rows.jsonl")) for f in (alone, together))
    assert one == two
    assert len(list((together / "journal").iterdir())) == 2
    mine, theirs = (read_rows(f / "pope" / "answers.jsonl") for f in (alone, together))
    assert mine == theirs


ANSWER = {
    **{"prompt": "Which?", "family": None, "difficulty": None, "reference": ["a", "b"]},
    **{"route": {"1": "2x2"}, "rows": [4, 1], "base_rows": 4, "visual_macs_ratio": 0.5},
    **{"prefill_flops": 9, "new_tokens": 1, "ms": 1.0, "prefill_ms": 0.5},
}
NO_ENTRIES = ["5", "null", "[[1],{}]", '{"a":1,"b":2}', '[1, {"answer": "x"}, 2]', "[true, {}]"]
NO_ENTRIES += ["[0,5]", '["0", {"answer": "x"}]', '[-1, {"answer": "x"}]', '[1.0, {"answer": "x"}]']
NO_ENTRIES += ['[0, {"answer": 5}]', "[0, {}]", "[" * 100_000, '[1, {"answer": "x', "\0" * 9]
NO_ANSWERS = [{"rows": "4"}, {"route": [1]}, {"base_rows": None}, {"ms": None}, {"answer": None}]
NO_ANSWERS += [{"visual_macs_ratio": "x"}, {"rows": ["x"]}, {"route": {"x": "2x2"}}]


def test_lines_of_a_journal_that_are_no_answers_are_asked_again(tmp_path, caplog):
    journal = Journal(tmp_path, "questions")
    good = {n: {**ANSWER, "answer": f"{n}"} for n in range(3)}
    for line in NO_ENTRIES:
        journal.path.write_text(f"{line}\n{json.dumps([2, good[2]])}")
        assert Journal(tmp_path, "questions").read() == {2: good[2]}, line
        assert Journal(tmp_path, "questions").read(3) == {2: good[2]}, line
    assert "damaged lines; their questions are asked again" in caplog.text
    caplog.clear()
    journal.path.unlink()
    journal.add(good)
    journal.add({9999: good[0]})
    assert Journal(tmp_path, "questions").read(3) == good
    for change in NO_ANSWERS:
        journal.path.unlink()
        journal.add({0: {**good[0], **change}, 1: good[1]})
        assert Journal(tmp_path, "questions").read(3) == {1: good[1]}, change
    with journal.path.open("ab") as file:
        file.write(b'\n[2, {"answer": "\xff"}]\n')
    assert Journal(tmp_path, "questions").read() == {1: good[1]} | {0: {**good[0], **change}}


def test_answers_with_any_characters_are_found_again(tmp_path):
    words = ["a\u2028b", "c\u2029d", "e\u0085f", "g\x0bh\x0c\x1c", "i\r\nj", "", "\ud800"]
    Journal(tmp_path, "questions").add({n: {"answer": word} for n, word in enumerate(words)})
    found = Journal(tmp_path, "questions").read()
    assert [row["answer"] for row in found.values()] == [*words[:-1], "\ufffd"]
    os.mkfifo(tmp_path / "questions.1.jsonl")
    with pytest.raises(FileError, match=r"questions\.1\.jsonl"):
        Journal(tmp_path, "questions").read()
