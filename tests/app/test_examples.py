"""The examples of README.md, docs/ and the commands ask what a trained model can answer."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpn
from dpn import route
from dpn.common.files import read_json
from dpn.config import build
from dpn.config.compose import compose
from dpn.data.sources.mosaic import Mosaic
from dpn.runs.path import run_path
from dpn.train import train
from tests.app.test_docs import PAGES, ROOT, blocks, commands, door_of

#: One process trains the default run for all tests.
pytestmark = pytest.mark.xdist_group("examples")
MODULES = [Path(dpn.__file__).parent / f"{name}.py" for name in ("chat", "generate", "route")]
#: Questions in examples about other images than mosaics.
OTHERS = {
    *("What is on the bus?", "What is this?", "What is it?", "First, what is it?", "Where is it?")
}
QUESTIONS = (
    r'prompt=\\?"([^"\\]+)',
    r'<image>\\+n([^"\\]+)',
    r'"type": \\?"text\\?", \\?"text\\?": \\?"([^"\\]+)',
    r'\bask\(\s*\\?"([^"\\]+)',
    r"^ +> (.+)$",
)


def asked(text):
    """The questions of a page."""
    listed = re.findall(r"prompt='(\[.+?\])'", text)
    found = {question for one in listed for question in route._questions(one)}
    return found.union(*(re.findall(pattern, text, re.MULTILINE) for pattern in QUESTIONS))


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory):
    """The questions of the embedded data."""
    data = Mosaic(root=str(tmp_path_factory.mktemp("data")), train_images=90, val_images=1)
    data.prepare()
    rows = json.loads((data.folder / "train-questions.json").read_text())
    turns = [turn for row in rows for turn in row["conversations"] if turn["from"] == "human"]
    return {turn["value"].removeprefix("<image>\n") for turn in turns}


@pytest.mark.parametrize("page", [*PAGES, *MODULES], ids=lambda page: page.name)
def test_questions_are_those_of_the_data(page, mosaics):
    assert asked(page.read_text()) <= mosaics | OTHERS


def test_questions_are_found(mosaics):
    every = set.union(*(asked(page.read_text()) for page in (*PAGES, *MODULES)))
    assert len(every & mosaics) >= 3
    assert asked('run=RUN prompt="Read row 1."') == {"Read row 1."}
    assert "Read row 1." not in mosaics


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Folder with the default run `RUN`, an image `mosaic.png` of its data, and the answer to
    *Read the first 2 rows.*; the run that `make train` left is used if there is one.
    """
    folder = tmp_path_factory.mktemp("reader")
    left = run_path(compose("train", [f"paths.output_root={ROOT / 'outputs'}"]))
    done = (read_json(left / "status.json") or {}).get("status") == "finished"
    root = ROOT if done else folder
    paths = [f"paths.output_root={root / 'outputs'}", f"paths.data_root={root / 'data'}"]
    run = left if done else train(compose("train", paths))
    (folder / "RUN").symlink_to(run)
    source = build.data_module(compose("train", paths).config.data).source
    source.prepare()
    rows = json.loads((source.folder / "val-questions.json").read_text())
    row = next(r for r in rows if "first 2 rows" in r["conversations"][0]["value"])
    (folder / "mosaic.png").write_bytes((source.folder / row["image"]).read_bytes())
    (folder / "FILE").symlink_to("mosaic.png")
    return folder, row["conversations"][1]["value"]


def read_well(text, digits):
    """Whether a text holds a word with at least 13 of 16 digits right."""
    words = [word for word in re.findall(r"\d+", text) if len(word) == len(digits)]
    return any(sum(map(str.__eq__, word, digits)) >= 13 for word in words)


@pytest.mark.slow
def test_python_examples_answer_well(reader, monkeypatch, capsys):
    folder, digits = reader
    monkeypatch.chdir(folder)
    names = {}
    for block in blocks(ROOT / "docs/hugging_face.md", "python"):
        exec(block, names)
    assert read_well(capsys.readouterr().out, digits)


ASKED = {
    tuple(command)
    for page in PAGES
    for command in commands(page)
    if door_of(command)[0] in ("generate", "chat", "route") and "run=RUN" in command
}


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(ASKED), ids=" ".join)
def test_commands_answer_well(command, reader):
    folder, digits = reader
    door, arguments = door_of(command)
    done = subprocess.run(
        [sys.executable, "-m", f"dpn.{door}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="Read the first 2 rows.\n" if door == "chat" else "",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if any(argument.startswith("to=") for argument in arguments):
        assert (folder / "route.png").stat().st_size > 10_000
    else:
        assert read_well(done.stdout, digits)
