"""The end of a run: weights, rows, numbers, pictures; and what a resumed run begins from."""

import json
import shutil
import sys

import pytest

from dpn import inference
from dpn.common.errors import FileError
from dpn.common.files import read_json, read_rows
from dpn.config import build, preflight
from dpn.config.apply import problems
from dpn.config.compose import compose
from dpn.eval import evaluate
from dpn.inference import evaluation
from dpn.runs.inputs import InputsChanged
from dpn.runs.request import ConfigError
from dpn.train import main
from dpn.training import dashboards
from tests.app.conftest import timeless, tiny_run, without_times
from tests.app.test_train import AtStep, crash, folder_of, run, same_weights


def fail(*arguments, **options):
    raise TypeError("'<' not supported between instances of 'str' and 'int'")


def never(trainer):
    raise AssertionError("the run was trained again")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["answers", "numbers"])
def test_what_fails_after_training_is_finished_without_training(finished, tiny, monkeypatch, step):
    """Neither a checkpoint nor training is needed: the trained model is in the folder."""
    from dpn import train as door

    place = (evaluation, "evaluate_held_out") if step == "answers" else (door, "write_json")
    monkeypatch.setattr(*place, fail)
    with pytest.raises(TypeError):
        run(tiny)
    monkeypatch.undo()
    folder = folder_of(tiny)
    assert same_weights(folder, finished)
    assert (folder / "rows.jsonl").exists() == (step == "numbers")
    shutil.rmtree(folder / "checkpoints")
    assert run(tiny, AtStep(1, never)) == folder
    assert same_weights(folder, finished)
    mine, whole = (read_json(f / "metrics.json") for f in (folder, finished))
    assert timeless(mine) == timeless(whole)
    assert mine["time/train_s"] > 0
    mine, whole = (without_times(read_rows(f / "rows.jsonl")) for f in (folder, finished))
    assert mine == whole


@pytest.mark.slow
def test_pictures_and_dashboards_that_fail_end_no_run(finished, tiny, monkeypatch, caplog):
    monkeypatch.setattr(evaluation, "draw_overlays", fail)
    monkeypatch.setattr(dashboards, "boards_of", lambda trainer: [])
    monkeypatch.setattr(dashboards, "show_results", fail)
    folder = run([*tiny, "overlays=2"])
    assert read_json(folder / "status.json")["status"] == "finished"
    said = "The pictures of what layers kept could not be made (TypeError: '&lt;' not supported"
    assert said in (folder / "report.md").read_text()
    assert "The results on the dashboards could not be made" in caplog.text
    mine, whole = (read_json(f / "metrics.json") for f in (folder, finished))
    assert timeless(mine) == timeless(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.json", "rows.jsonl"])
def test_damaged_results_of_a_finished_run_are_made_again(finished, tiny, name):
    folder = run(tiny)
    (folder / name).write_text("{")
    assert run(tiny, AtStep(1, never)) == folder
    mine, whole = (without_times(read_rows(f / "rows.jsonl")) for f in (folder, finished))
    assert mine == whole


def called(monkeypatch, *overrides):
    """What the command line does."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    main()


@pytest.mark.slow
def test_runs_without_held_out_rows_or_images_are_finished(squares, tmp_path, monkeypatch, capsys):
    rows = read_json(squares / "val.json")
    for row in rows:
        del row["image"]
        row["conversations"][0]["value"] = "Which colour?"
    (tmp_path / "text.json").write_text(json.dumps(rows))
    for number, file in enumerate(["null", tmp_path / "text.json"]):
        tiny = [*tiny_run(squares, tmp_path / str(number)), "trainer.max_steps=1"]
        called(monkeypatch, *tiny, f"data.val_file={file}")
        assert read_json(folder_of(tiny) / "status.json")["status"] == "finished"
        called(monkeypatch, "-m", *tiny, f"data.val_file={file}", "seed=0,1")
        assert "2 jobs, 2 runs: 2 ok" in capsys.readouterr().out


def test_a_search_needs_held_out_rows(squares, tmp_path):
    from dataclasses import replace

    blind = compose("train", [*tiny_run(squares, tmp_path), "data.val_file=null"])
    preflight.check(blind)
    with pytest.raises(ConfigError, match=r"set data\.val_file or data\.holdout"):
        preflight.check(replace(blind, searching=True))
    preflight.check(replace(compose("train", tiny_run(squares, tmp_path)), searching=True))


@pytest.fixture
def own(squares, tmp_path):
    """Overrides of a run on a copy of the squares, whose files can be changed."""
    data = shutil.copytree(squares, tmp_path / "data")
    return [*tiny_run(data, tmp_path / "outputs"), "trainer.max_steps=4"], data / "train.json"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["rad", "crimson and many other words that are new: 1234567890"])
def test_a_resumed_run_keeps_its_data_and_its_tokenizer(own, text):
    tiny, file = own
    with pytest.raises(RuntimeError):
        run(tiny, AtStep(3, crash))
    folder, before = folder_of(tiny), file.read_text()
    ids = tokens(folder, tiny)
    file.write_text(before.replace("red", text))
    with pytest.raises(InputsChanged, match=rf"{file} changed .* remove .*inputs\.json"):
        run(tiny)
    file.write_text(before)
    shutil.copytree(folder, folder.with_name("copy"))
    run(tiny)
    shutil.copytree(folder.with_name("copy"), folder, dirs_exist_ok=True)
    file.write_text(before.replace("red", text))
    (folder / "inputs.json").unlink()  # what the sentence says
    run(tiny)
    assert tokens(folder, tiny) == ids == inference.load(folder)[1].tokenizer.get_vocab()


def tokens(folder, overrides):
    config = compose("train", overrides).config
    source = build.data_module(config.data)
    return build.processor(config, source, folder / "tokenizer").tokenizer.get_vocab()


@pytest.mark.slow
def test_data_that_change_before_the_first_checkpoint_are_taken(own):
    tiny, file = own
    with pytest.raises(RuntimeError):
        run(tiny, AtStep(1, crash))
    file.write_text(file.read_text().replace("red", "crimson"))
    folder = run(tiny)
    assert any("crimson" in token for token in tokens(folder, tiny))


@pytest.mark.slow
def test_other_data_than_those_of_the_run_are_refused_by_eval_and_apply(own, caplog):
    tiny, file = own
    folder = run(["router=none", *tiny])
    applied = compose("train", [*tiny, "stage=apply", "router=fastv", "router.keep=0.5"])
    assert problems(applied) == []
    val = file.with_name("val.json")
    val.write_text(val.read_text().replace("red", "rad"))
    (problem,) = problems(applied)
    assert f"{val} changed after {folder}" in problem
    with pytest.raises(InputsChanged, match=rf"{val} changed .* or name the data"):
        evaluate(compose("eval", [f"run={folder}", "overlays=0"]))
    run(["router=none", *tiny])
    assert f"{val} changed after this run was trained on it" in caplog.text
    own_data = [o for o in tiny if o.startswith("data")]
    evaluate(compose("eval", [f"run={folder}", "overlays=0", *own_data]))


@pytest.mark.slow
def test_flipped_bytes_of_weights_are_refused(finished, tmp_path, tiny):
    copy = shutil.copytree(finished, tmp_path / "run")
    path = copy / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"model\.safetensors has not the bytes"):
        inference.load(copy)
    with pytest.raises(ConfigError, match=r"model\.safetensors has not the bytes"):
        run([*tiny, f"init.model={copy}"])


@pytest.mark.slow
def test_no_file_of_a_run_holds_text_from_the_environment(tiny, monkeypatch):
    secret = "#a1b2c3"
    monkeypatch.setenv("DPN_TEST_TOKEN", secret)
    typed = ["data.image_background=${oc.env:DPN_TEST_TOKEN}", "logger=csv", "trainer.max_steps=2"]
    folder = run([*tiny, *typed])
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "hparams.yaml", "report.md"} <= {path.name for path in files}
    assert any(path.suffix == ".ckpt" for path in files)
    assert not [path.name for path in files if secret.encode() in path.read_bytes()]
