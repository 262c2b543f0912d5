"""Atomic files and folders, what killed processes leave, and the checked reader."""

import json
import os
import stat
from contextlib import suppress

import pytest

from dpn.common import files
from dpn.common.checksums import CHECKSUMS, check_checksums, write_checksums
from dpn.common.errors import FileError
from dpn.common.files import (
    BLANK,
    add_row,
    atomic_folder,
    atomic_path,
    json_lines,
    read_json,
    read_rows,
    read_text,
    remove_temporary,
    write_json,
    write_text,
)


@pytest.mark.parametrize("process", [os.getpid(), 1], ids=["own", "another"])
def test_what_a_killed_process_left_refuses_no_later_one(tmp_path, process):
    (tmp_path / f".model.{process}.tmp").mkdir()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "model" / "x").read_text() == "x"


def test_what_killed_processes_left_is_removed_but_not_what_another_owner_has(tmp_path):
    for name in (".model.77.tmp", "checkpoints/.step-1.ckpt.tmp"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / ".status.json.77-0a.tmp").write_text("{")
    (tmp_path / "eval" / "x" / ".part.78.tmp").mkdir(parents=True)
    (tmp_path / "eval" / "x" / ".lock").touch()
    (tmp_path / "notes.tmp").touch()
    remove_temporary(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    mine = {"checkpoints", "eval", "eval/x", "notes.tmp"}
    assert left == {*mine, "eval/x/.lock", "eval/x/.part.78.tmp"}


def test_a_folder_is_replaced_as_a_whole_with_the_permissions_of_new_files(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    before = os.umask(0o027)
    try:
        with suppress(ZeroDivisionError), atomic_folder(tmp_path / "model") as folder:
            (folder / "half").touch()
            1 / 0  # noqa: B018
        assert [p.name for p in (tmp_path / "model").iterdir()] == ["old"]
        with atomic_folder(tmp_path / "model") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "new").touch(mode=0o600)
    finally:
        os.umask(before)
    (new,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert new.relative_to(tmp_path).as_posix() == "model/deep/new"
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left.*metrics\.json"),
        atomic_path(tmp_path / "metrics.json"),
    ):
        raise OSError(28, "No space left on device")


def test_text_that_utf8_cannot_hold_is_written_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")  # as Python names a file of another encoding
    write_json(tmp_path / "status.json", {"error": name})
    add_row(tmp_path / "rows.jsonl", {"id": name})
    write_text(tmp_path / "report.md", name)
    assert read_json(tmp_path / "status.json") == {"error": "caf\ufffd.png"}
    assert read_rows(tmp_path / "rows.jsonl") == [{"id": "caf\ufffd.png"}]
    assert (tmp_path / "report.md").read_text() == "caf\\udce9.png"


BAD_JSON = {
    "empty": b"",
    "cut": b'{"status": "fin',
    "zeros": b"\0" * 9,
    "not UTF-8": b'"\xff\xfe"',
    "nested": b"[" * 100_000,
    "digits": b"1" * 10_000,
    "two values": b"{} {}",
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_damaged_json_is_a_sentence_with_the_file(tmp_path, name):
    path = tmp_path / "status.json"
    path.write_bytes(BAD_JSON[name])
    with pytest.raises(FileError, match=r"status\.json") as caught:
        read_json(path)
    assert len(str(caught.value)) < 400


def test_numbers_that_json_does_not_have_are_none(tmp_path):
    (tmp_path / "x").write_text('[NaN, Infinity, -1e999, 1.5, "a\\ud800b"]')
    assert read_json(tmp_path / "x") == [None, None, None, 1.5, "a\ufffdb"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "huge"])
def test_only_regular_files_of_bounded_size_are_read(tmp_path, kind):
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(FileError, match=r"config\.yaml"):
        read_text(path)
    if kind != "huge":
        with pytest.raises(FileError, match=r"config\.yaml"):
            list(json_lines(path))


def test_what_does_not_exist_is_none_or_not_found(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "x", tmp_path / "file" / "x"):
        assert read_json(path) is None
        with pytest.raises(FileNotFoundError):
            read_text(path)


def test_lines_end_with_a_line_feed_alone(tmp_path):
    words = ["a\u2028b", "c\u2029d", "e\u0085f", "g\x0bh\x0ci\x1cj", "k\rl", "m\r\nn"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(w, ensure_ascii=False) + "\n" for w in words) + "\n{")
    values = [value for _, value in json_lines(path)]
    assert values[:-2] == words
    assert values[-2] is BLANK
    assert "line" not in str(values[-1])
    assert "not complete JSON" in str(values[-1])


@pytest.mark.parametrize("text", ['{"a": 1}\n\n', '{"a": 1}\n5\n', '{"a": 1}\n{"a', "null"])
def test_rows_name_the_damaged_line(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    number = 1 if text == "null" else 2
    with pytest.raises(FileError, match=rf"rows\.jsonl, line {number}: it is"):
        read_rows(path)


def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + b"\0" * 5000)
    with pytest.raises(FileError, match="line 2: it has more than 1000 bytes"):
        read_rows(tmp_path / "rows.jsonl")


def test_flipped_bytes_of_weights_are_found(tmp_path):
    for number in range(2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(range(100)))
    check_checksums(tmp_path)  # without checksums
    write_checksums(tmp_path)
    check_checksums(tmp_path)
    second = tmp_path / "model-1.safetensors"
    second.write_bytes(bytes([*range(99), 0]))
    with pytest.raises(FileError, match=r"model-1\.safetensors has not the bytes"):
        check_checksums(tmp_path)
    (tmp_path / CHECKSUMS).write_text("x\n")
    with pytest.raises(FileError, match="SHA256SUMS is damaged"):
        check_checksums(tmp_path)
