import gzip
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

import dpn.data.index
from dpn.data.batch import DataError
from dpn.data.index import open_index
from dpn.data.rows import FileRows
from dpn.data.sources.base import Split
from tests.data.conftest import gpt, human, row

ODD = r"""
 [ {"id": 7, "image": ["a.png","b.png"], "conversations": [{"from": "human", "value": "zwei  W\u00f6rter\n"}]},
{"id":"x","model":"","conversations":[{"role":"user","content":"drei 🐈 мир"}],"more":{"a":[1.5e3,-0.0,12345678901234567890123]}}
  , 12, -3.25, true,null,"][,\"}\\" ,[], {} , [[1],[2,[3]]],"\ud83d", "\ud83d\ude00", NaN, {"a": 1, "a": 2},
{"conversations": "text"}, {"conversations": [5, {"from": "robot"}]}, {"image": "", "conversations": []} , 0]
"""  # noqa: E501


def rows_of(file):
    return FileRows(Split(Path(file), Path(file).parent))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("piece", [1, 2, 7, 64, 4096])
def test_rows_are_what_json_loads_gives_wherever_the_pieces_are_cut(
    piece, newline, tmp_path, monkeypatch
):
    monkeypatch.setattr(dpn.data.index, "PIECE", piece)
    file = tmp_path / "odd.json"
    file.write_bytes(ODD.replace("\n", newline).encode())
    assert repr(list(rows_of(file))) == repr(json.loads(ODD))  # NaN is not equal to itself


def test_words_and_images_are_counted_without_loading_a_row(tmp_path):
    file = tmp_path / "odd.json"
    file.write_text(ODD, encoding="utf-8")
    index = open_index(file)
    assert index.words[:3].tolist() == [2, 3, 0]
    assert index.image[:3].tolist() == [1, 0, 0]
    assert rows_of(file).lengths[:3].tolist() == [2, -3, -1]  # LLaVA's sign; never 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty; write or download it again"),
        (" \n", "must hold a JSON array of at least one row, or JSON lines"),
        ("[ ] ", "must hold a JSON array of at least one row"),
        ('{"a": 1}', "must hold a JSON array of at least one row"),
        ("{}", "must hold a JSON array of at least one row"),
        ('{"data": [{"id": 1}]}', ".*; its rows seem to be under 'data': save that array"),
        ("12", "must hold a JSON array of at least one row"),
        ('{"id": 1}\n[2]', "is not valid JSON: something follows the last object, after 1 rows"),
        ('{"id": 1}\n{"id"', "is not valid JSON: Expecting ':' delimiter, after 1 rows"),
        ("[" * 99_999, "is not valid JSON: a value is nested too deeply, after 0 rows"),
        ("[1]".encode("utf-16"), "is in UTF-16 or UTF-32; save it as UTF-8"),
        ("[1]".encode("utf-16-le"), "is in UTF-16 or no text; save it as JSON in UTF-8"),
        ("[1]".encode("utf-32-be"), "is in UTF-16 or no text; save it as JSON in UTF-8"),
        (gzip.compress(b"[1]", mtime=0), "is compressed with gzip; decompress it"),
        (b"PAR1" + bytes(99), "is a parquet file; convert it to JSON"),
        (b"PK\x03\x04" + bytes(99), "is a ZIP archive; unpack it"),
        ("[1, 2", "is not valid JSON: ',' or ']' is missing, after 2 rows"),
        ("[1 2]", "is not valid JSON: ',' or ']' is missing, after 1 rows"),
        ("[1,]", "is not valid JSON: Expecting value, after 1 rows"),
        ('[1, {"a": }, 3]', "is not valid JSON: Expecting value, after 1 rows"),
        ('[1, "abc', "is not valid JSON: Unterminated string starting at, after 1 rows"),
        ("[1] 2", "is not valid JSON: something follows the array, after 1 rows"),
        (b'["\xff"]', "is not valid JSON: .* can't decode byte .*; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("piece", [1, 4096])
def test_files_that_json_refuses_too(content, reason, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(dpn.data.index, "PIECE", piece)
    file = tmp_path / "bad.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=rf"bad\.json {reason}"):
        open_index(file)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("piece", [1, 4096])
def test_json_lines_and_byte_order_marks_are_read(mark, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(dpn.data.index, "PIECE", piece)
    rows = [row(0), row(1, human("😀"), gpt("\u2028")), {"id": 2, "messages": [human("hi")]}]
    lines = [json.dumps(one, ensure_ascii=False) for one in rows]
    for count, text in (
        (3, json.dumps(rows, ensure_ascii=False)),
        (3, "\n".join(lines)),
        (3, "\r\n\r\n".join(lines) + "\n"),
        (1, lines[0]),
    ):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(mark + text.encode())
        assert list(rows_of(file)) == rows[:count]
    assert open_index(file).words.tolist() == [10]


def test_folders_and_special_files_are_no_data_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("", "pipe.json"):
        with pytest.raises(DataError, match="is a folder or a special file; give the path"):
            open_index(tmp_path / name)


def test_an_error_is_found_before_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(dpn.data.index, "PIECE", 64)
    file = tmp_path / "bad.json"
    file.write_bytes(b'[{"a": x' + b" " * 100_000 + b"\xff")  # the last byte cannot be decoded
    with pytest.raises(DataError, match="Expecting value, after 0 rows"):
        open_index(file)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Treat every file as large; return the list of indexed files."""
    made, make = [], dpn.data.index.make_index
    monkeypatch.setattr(dpn.data.index, "SMALL", 0)
    monkeypatch.setattr(dpn.data.index, "make_index", lambda file: made.append(file) or make(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_an_index_is_made_once_and_again_for_a_changed_file(kept, write):
    file = write([row(0), row(1)])
    assert [r["id"] for r in rows_of(file)] == [r["id"] for r in rows_of(file)] == ["r0", "r1"]
    assert len(kept) == 1
    os.utime(file, ns=(1, 1))
    assert len(rows_of(file)) == 2
    assert len(kept) == 2
    write([row(0), row(1), row(2)])
    assert [r["id"] for r in rows_of(file)] == ["r0", "r1", "r2"]
    assert len(kept) == 3
    index = file.with_name(f".{file.name}.index.arrow")
    index.write_bytes(index.read_bytes()[:100])
    assert len(rows_of(file)) == 3
    assert len(kept) == 4
    assert len(rows_of(file)) == 3
    assert len(kept) == 4


def test_a_read_only_folder_leaves_the_index_in_the_cache(kept, write, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    file = write([row(0)])
    assert len(rows_of(file)) == len(rows_of(file)) == 1
    assert len(kept) == 1
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert not list(tmp_path.glob(".*.arrow"))


def test_processes_that_start_together_make_one_index(kept, write, tmp_path):
    file = write([row(i) for i in range(50)])

    def open_and_tell():
        ids = [r["id"] for r in rows_of(file)]
        (tmp_path / f"{os.getpid()}.told").write_text(f"{len(kept)} {len(ids)}")

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=open_and_tell) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    told = [path.read_text() for path in tmp_path.glob("*.told")]
    assert sorted(told) == ["0 50", "0 50", "0 50", "1 50"]


def test_rows_are_pickled_to_a_spawned_worker_and_notice_a_changed_file(write):
    file = write([row(0, human("hi"), gpt("ho")), row(1)])
    rows = rows_of(file)
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    file.write_text("x" * file.stat().st_size)
    with pytest.raises(DataError, match="the file has changed since it was opened"):
        rows[0]


@pytest.mark.slow
def test_memory_of_a_middle_sized_file(tmp_path):
    """A tenth of the real file; the bounds are for what the table adds to a bare process."""
    from experiments.data import index

    file = index.generate(tmp_path, 66_530)
    made = index.measure("make", file)
    assert made["rows"] == 66_530
    assert made["added_mb"] < 100  # the content alone would take 0.5 GB
    opened = index.measure("open", file)
    assert opened["added_mb"] < 60  # pyarrow itself
    assert opened["seconds"] < made["seconds"]
    assert max(index.measure("work", file)["worker_uss_mb"]) < 60
