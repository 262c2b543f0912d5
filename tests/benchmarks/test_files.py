"""Whatever is wrong with an official file, one sentence names it."""

import json
import random

import pytest

from dpn import benchmarks
from dpn.benchmarks._files import read_jsonl, read_object, read_table
from dpn.data.batch import DataError
from tests.benchmarks.files import write
from tests.benchmarks.test_contracts import module_of

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"a": "\xff"}', "a.json is not UTF-8 text"),
        (b"\xff\xfe{\x00}\x00", "a.json is not UTF-8 text"),
        (f'{{"a": {DEEP}'.encode(), "nested too deeply"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"[]", "must hold an object|must be an object"),
        (b"null", "must hold an object|must be an object"),
        (b'{"a": {"a": [1]}}', "is missing|is {|must be"),
    ],
)
@pytest.mark.parametrize("read", [read_jsonl, read_object])
def test_damage_of_json(read, content, sentence, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read(path, {"a": str})


@pytest.mark.parametrize("read", [read_jsonl, read_object, read_table])
def test_what_is_not_a_file(read, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, {})
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / ("a" * 300), {})


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": "x"}\r\n')
    assert read_jsonl(tmp_path / "a", {"a": str}) == [{"a": "x"}]


def test_keys_of_an_object_are_unique(tmp_path):
    write(tmp_path / "a", '{"v1_0": {"a": "x"}, "v1_0": {"a": "y"}}')
    with pytest.raises(DataError, match="has the key 'v1_0' twice"):
        read_object(tmp_path / "a", {"a": str})


@pytest.mark.parametrize("line", ["1", "1\t2\t3"])
def test_lines_have_as_many_cells_as_the_head(line, tmp_path):
    write(tmp_path / "a", f"x\ty\n1\t2\n{line}\n")
    with pytest.raises(DataError, match="line 3: it has not as many cells as the head"):
        read_table(tmp_path / "a", {"x": str})


def official(root):
    """The files that hold text."""
    return sorted(p for p in root.rglob("*") if p.suffix in (".json", ".jsonl", ".tsv", ".txt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmarks.names())
def test_no_damage_ends_in_another_error(name, tmp_path):
    """Bytes and values are changed by chance; what is still valid must also be scored."""
    module_of(name).make(tmp_path)
    benchmark, draw, tried = benchmarks.build(name, root=tmp_path), random.Random(name), 0
    for path in official(tmp_path):
        content = path.read_bytes()
        for _ in range(30):
            path.write_bytes(changed(content, draw))
            tried += 1
            try:
                questions = benchmark.questions()
                for image in questions[0].images if questions else ():
                    image()
                benchmark.write(questions, ["a"] * len(questions), tmp_path / "out", "model")
                benchmark.score(questions, ["a"] * len(questions), tmp_path / "out")
            except DataError:
                continue
        path.write_bytes(content)
    assert tried


VALUES = [None, True, -1, 10**400, 0.5, "", "\u2028", [], [[]], {}, {"a": 1}, [None], "x" * 300]


def changed(content, draw):
    """A text with other bytes, or with another value somewhere in a line of JSON."""
    if draw.random() < 0.4:
        data = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data[: draw.randrange(1, len(data) + 1)] if draw.random() < 0.3 else data)
    lines = content.decode().split("\n")
    number = draw.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        lines[number] += draw.choice(["\t", "\tx", "\x00", "\r", '"'])
        return "\n".join(lines).encode()
    replace_somewhere(value, draw)
    lines[number] = json.dumps(value)
    if draw.random() < 0.2:
        lines.insert(number, lines[number])
    return "\n".join(lines).encode()


def replace_somewhere(value, draw):
    """Replace a part of a JSON value, or add one, in place."""
    if not isinstance(value, dict | list) or not value:
        return
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.6 and isinstance(value[key], dict | list) and value[key]:
        replace_somewhere(value[key], draw)
    else:
        value[key] = draw.choice(VALUES)
