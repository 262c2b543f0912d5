"""Reading the files of a run folder, whatever state they are in."""

import io
import os
import random
import time
from html import unescape

import pytest
import torch
from omegaconf import OmegaConf

from dpn.common.errors import FileError
from dpn.reports.page import read_results, write_report
from dpn.reports.runs import find_runs, read_run
from dpn.runs import saved
from dpn.runs.folder import OtherRun, RunFolder
from dpn.runs.inputs import INPUTS, InputsChanged, changed, note, refuse_changed
from dpn.runs.saved import read_settings, read_status
from dpn.training.resume import CompleteCheckpointIO, latest_checkpoint
from tests.app.run_folders import write_run

STATUSES = ["", '{"status": "fin', "\0" * 9, "[1]", "5", "null", '{"attempt": "x"}']
STATUSES += ['{"status": "running", "heartbeat": "x"}', '{"identity": 3}', '{"overrides": "x"}']
STATUSES += ['{"status": ["finished"]}', "[" * 100_000, '{"pid": 1e400}', '{"missing": [1]}']


@pytest.mark.parametrize("text", STATUSES)
def test_a_run_with_a_damaged_status_continues(tmp_path, text, caplog):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(FileError, match=r"status\.json"):
        read_status(tmp_path)
    with RunFolder(tmp_path) as run:
        assert run.status["attempt"] == 1
    assert "status.json" in caplog.text
    assert RunFolder(tmp_path).finished


def test_a_damaged_status_does_not_let_other_settings_into_the_folder(tmp_path):
    from dpn.config.compose import compose

    def folder(*overrides):
        return RunFolder.of(compose("train", [f"paths.run_dir={tmp_path}", *overrides]))

    with folder():
        pass
    (tmp_path / "status.json").write_text("{")
    with folder():
        pass
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(OtherRun, match="other settings"):
        folder("optim.lr=0.5")


DAMAGED = [
    ("", ""),
    ("{}", "null\n"),
    ("{}", "\n{}\n"),
    ("{}", '{"id": 1}'),
    ("[]", ""),
    ("{}", None),
]
DAMAGED += [('{"val/accuracy": "high"}', ""), ('{"a": true}', ""), (None, "")]


@pytest.mark.parametrize(("metrics", "rows"), DAMAGED)
def test_damaged_results_are_a_sentence(tmp_path, metrics, rows):
    for name, text in (("metrics.json", metrics), ("rows.jsonl", rows)):
        if text is not None:
            (tmp_path / name).write_text(text)
    kind = FileNotFoundError if None in (metrics, rows) else FileError
    with pytest.raises(kind, match=str(tmp_path)):
        read_results(tmp_path)


SETTINGS = {
    "aliases": "paths: {}\nseed: 0\na0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 40)),
    "lists": "a0: &a0 [1, 1]\n"
    + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60)),
    "circle": "a: &a {b: *a}",
    "nested": "[" * 500,
    "tag": "a: !!python/object/apply:os.getcwd []",
    "syntax": "a: [",
    "date": "a: 2020-13-45",
    "interpolation": "a: ${",
    "twice": "a: 1\na: 2",
    "list": "- 1",
    "text": "words",
    "empty": "",
    "no sections": "paths: 3\nseed: 0",
    "large": "a: " + "x" * 300_000,
    "zeros": "\0" * 20,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_damaged_settings_are_a_sentence_at_once(tmp_path, name):
    (tmp_path / "config.yaml").write_text(SETTINGS[name])
    since = time.perf_counter()
    with pytest.raises(FileError, match=r"config\.yaml") as caught:
        read_settings(tmp_path, ["paths"])
    assert time.perf_counter() - since < 5
    assert len(str(caught.value)) < 500


def test_aliases_that_repeat_little_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("a: &a {x: 1e-4}\nb: *a\n")
    assert read_settings(tmp_path) == {"a": {"x": 1e-4}, "b": {"x": 1e-4}}


def test_runs_with_pipes_and_folders_in_the_place_of_files_are_damaged(tmp_path):
    for name in ("status.json", "config.yaml", "metrics.json", "rows.jsonl", "curves.jsonl"):
        for kind, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
            run = write_run(tmp_path / f"{kind}-{name}")
            (run / name).unlink()
            make(run / name)
            found = read_run(run)
            assert (found.outcome, name in found.problem) == ("damaged", True)
    assert len(find_runs([tmp_path])) == 10


@pytest.mark.parametrize("tries", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_random_damage_is_a_sentence_or_nothing(tmp_path, tries):
    chance, run = random.Random(0), write_run(tmp_path / "run")
    readers = {
        "status.json": saved.read_status,
        "metrics.json": saved.read_metrics,
        "rows.jsonl": saved.read_answers,
        "config.yaml": saved.read_settings,
        "curves.jsonl": saved.read_curves,
    }
    outcomes = set()
    for name, read in readers.items():
        whole = (run / name).read_bytes()
        for _ in range(tries):
            (run / name).write_bytes(mutated(whole, chance))
            try:
                read(run)
                outcomes.add("read")
            except FileError as error:
                outcomes.add("sentence" if name in str(error) else str(error))
        (run / name).write_bytes(whole)
    assert outcomes == {"read", "sentence"}


def mutated(data, chance):
    """Bytes that are cut, or of which some are replaced."""
    data = bytearray(data)
    if chance.random() < 0.3:
        return bytes(data[: chance.randrange(len(data))])
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.choice([0, 34, 44, 58, 91, 123, 255, 48, 10])
    return bytes(data)


def test_a_table_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch):
    from dpn.reports import page, tables

    def fail(*arguments):
        raise TypeError("'<' not supported")

    run = write_run(tmp_path / "run")
    monkeypatch.setattr(tables, "results", fail)
    monkeypatch.setattr(page, "draw", fail)
    text = unescape(write_report(run).read_text())
    assert "The table `Answers` could not be made (TypeError: '<' not supported)." in text
    assert "The figures could not be made (TypeError" in text
    assert "## Numbers\n\n| metric |" in text


STATE = {"state_dict": {"w": torch.arange(300.0)}, "global_step": 3, "loops": {"a": [1, None, "x"]}}


def written(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_damage_of_a_checkpoint_uses_the_one_before(tmp_path):
    whole, damages = written(STATE), {"cut": -100, "empty": 0}
    entry = whole.rfind(b"PK\x01\x02")
    contents = {name: whole[:size] for name, size in damages.items()}
    for name, place, value in (
        ("compression method", entry + 10, 99),
        ("encrypted", entry + 8, 1),
        ("name not UTF-8", entry + 46, 0xE9),
        ("directory, of which torch reads nothing", entry + 38, 0x10),
        ("weights", whole.find(torch.tensor(299.0).numpy().tobytes()), 1),
    ):
        contents[name] = bytes([*whole[:place], value, *whole[place + 1 :]])
    contents["no dictionary"] = written([1])
    contents["no archive"] = b"x" * 500
    older, newer = tmp_path / "step-0000001.ckpt", tmp_path / "step-0000002.ckpt"
    older.write_bytes(whole)
    for name, content in contents.items():
        newer.write_bytes(content)
        assert latest_checkpoint(tmp_path) == older, name
        with pytest.raises(FileError, match=r"step-0000002\.ckpt is damaged"):
            CompleteCheckpointIO().load_checkpoint(newer)
    newer.write_bytes(whole)
    assert latest_checkpoint(tmp_path) == newer
    older.write_bytes(b"")
    newer.write_bytes(b"")
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.slow
def test_no_random_damage_of_a_checkpoint_is_taken_for_another_content(tmp_path):
    chance, whole = random.Random(0), written(STATE)
    older, newer = tmp_path / "step-0000001.ckpt", tmp_path / "step-0000002.ckpt"
    older.write_bytes(whole)
    taken = 0
    for _ in range(4000):
        data = bytearray(mutated(whole, chance))
        if len(data) == len(whole):
            data[chance.randrange(len(data) - 900, len(data))] = chance.randrange(256)
        newer.write_bytes(data)
        if latest_checkpoint(tmp_path) == newer:
            taken += 1
            read = CompleteCheckpointIO().load_checkpoint(newer)
            assert read["state_dict"]["w"].equal(STATE["state_dict"]["w"])
            assert {k: read[k] for k in ("global_step", "loops")} == {
                k: STATE[k] for k in ("global_step", "loops")
            }
    assert 0 < taken < 2000


@pytest.mark.parametrize("sizes", ["", "[]", "5", '{"a": "x"}', '{"missing": 3}', "{"])
def test_a_damaged_checkpoint_folder_uses_the_one_before(tmp_path, sizes):
    for number in (1, 2):
        folder = tmp_path / f"step-000000{number}.ckpt"
        folder.mkdir()
        (folder / "a").write_bytes(b"1234")
        (folder / "sizes.json").write_text('{"a": 4}')
    (folder / "sizes.json").write_text(sizes)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-0000001.ckpt"


def test_changed_data_files_are_named(tmp_path):
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    train.write_text("[1]")
    val.write_text("[2]")
    files = {"train": train, "val": val}
    assert changed(tmp_path, files) == []  # a run of an earlier version
    note(tmp_path, files)
    refuse_changed(tmp_path, files, "or")
    os.utime(train, (0, 0))
    assert changed(tmp_path, files) == []  # content counts, not time
    train.write_text("[3]")
    with pytest.raises(InputsChanged, match=r"^\S*train\.json changed"):
        refuse_changed(tmp_path, files, "or")
    train.write_text("[1]")
    val.write_text("[2, 2]")
    assert changed(tmp_path, files) == [val]
    (tmp_path / INPUTS).write_text("{")
    with pytest.raises(FileError, match=r"inputs\.json"):
        changed(tmp_path, files)


def test_the_end_of_a_large_data_file_counts(tmp_path, monkeypatch):
    from dpn.runs import inputs

    monkeypatch.setattr(inputs, "WHOLE", 2**20)
    file = tmp_path / "train.json"
    file.write_bytes(b"0" * (2**20 + 2**24))
    note(tmp_path, {"train": file})
    for place in (0, 2**20 + 2**24 - 1):
        with file.open("rb+") as opened:
            opened.seek(place)
            opened.write(b"1")
        assert changed(tmp_path, {"train": file}) == [file]
        with file.open("rb+") as opened:
            opened.seek(place)
            opened.write(b"0")
    assert changed(tmp_path, {"train": file}) == []


def test_settings_of_a_run_are_read_as_they_were_written(tmp_path):
    from dpn.config.compose import compose

    config = compose("train", ["optim.lr=1e-5"]).config
    config.paths.run_dir = str(tmp_path)
    plain = OmegaConf.to_container(config, resolve=True)
    with RunFolder.of(compose("train", ["optim.lr=1e-5", f"paths.run_dir={tmp_path}"])):
        pass
    assert OmegaConf.to_container(read_settings(tmp_path)) == plain
