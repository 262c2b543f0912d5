"""Commands and examples of README.md and docs/: every one has to be possible as it stands."""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import Qwen2_5_VLTextConfig

from dpn import report, routers
from dpn.cli.arguments import read_arguments
from dpn.config import preflight
from dpn.config.compose import compose, compose_jobs
from dpn.cost import TextShape
from dpn.runs.request import ConfigError
from tests.talkers import make_run, picture
from tests.vlm_folders import save

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOORS = ("train", "eval", "bench", "plan", "verify")  # with a config
#: The name of the reader's own method, and one that exists.
EXAMPLE = ("=my_method", "=fastv")
#: Plugins of Hydra that are not among the development dependencies.
EXTRAS = ("hydra/launcher=ray", "sweep=pareto_optuna")
#: What is wrong with a command only here: its files and GPUs are the reader's.
READERS = (
    "does not exist",
    "is not a folder",
    "needs a GPU",
    "give model.weights.",
    "`stage=apply` needs a finished run",
    "needs a launcher that starts processes",
    "`optim=muon` needs whole matrices",
    "tools/search.py",
    "cannot be reached, only",
)


def blocks(path, language):
    """Code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def commands(path):
    """Commands of a page, as lists of words without comments."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|make|torchrun) [^`]+)`", path.read_text())
    words = (shlex.split(line, comments=True) for line in lines)
    return [[word.replace(*EXAMPLE) for word in line] for line in words if line]


ALL = sorted({tuple(command) for page in PAGES for command in commands(page)})


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert len(ALL) > 50  # commands are found


@pytest.mark.slow
@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_word_of_a_command_is_known(command):
    door, arguments = door_of(command)
    if door in DOORS:
        assert requests(door, arguments)
    elif door:
        call_door(door, arguments)
    elif command[1].startswith("tools/"):
        call_tool(ROOT / command[1], command[2:])
    elif command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "tests/" in command[-1] or command[1].endswith(".py"):
        files = [word for word in command if word.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_training_commands_pass_preflight(command):
    """But for what only the reader's machine can have."""
    door, arguments = door_of(command)
    for request in requests(door, arguments) if door == "train" else ():
        try:
            preflight.check(request)
        except ConfigError as error:
            wrong = [p for p in error.problems if not any(words in p for words in READERS)]
            assert wrong == []


def door_of(command):
    """NAME and the arguments of `python -m dpn.NAME`; None if it is another command."""
    for place, word in enumerate(command):
        if word.startswith("dpn.") and command[place - 1] == "-m":
            return word.removeprefix("dpn."), command[place + 1 :]
    return None, ()


def requests(door, arguments):
    """What a command with a config asks for, a request for each job of a sweep."""
    overrides = [argument for argument in arguments if argument != "-m"]
    if any(extra in overrides for extra in EXTRAS):
        pytest.skip("needs a plugin that is not installed")
    if "-m" in arguments:
        return compose_jobs(door, overrides)[1]
    return [compose(door, overrides)]


def call_door(name, arguments):
    """Check what follows `python -m dpn.NAME` where NAME has no config."""
    function = getattr(importlib.import_module(f"dpn.{name}"), name)
    if folders := [argument for argument in arguments if "=" not in argument]:
        assert name == "report"
        function = report.report_all
    read_arguments(function, [argument for argument in arguments if argument not in folders])


def call_tool(path, arguments):
    """Check what follows `python tools/NAME.py`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    if path.stem == "check_data":
        compose("check_data", arguments)
    elif "=" in arguments[0] and (function := getattr(tool, path.stem, None)):
        read_arguments(function, arguments)


#: Checkpoint of the examples with `dpn.compress`; here a tiny model of the same type.
STOCK = "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the Python examples find: a run `RUN`, an image, and the checkpoint."""
    folder = tmp_path_factory.mktemp("reader")
    make_run(folder / "RUN", {"name": "dpe", "layers": [0, 2], "min_rows": 1})
    picture().save(folder / "mosaic.png")
    save(folder / STOCK, "idefics3", num_hidden_layers=8)
    return folder


def run_examples(page, folder, monkeypatch, **names):
    """Run the Python blocks of a page one after another; return their names."""
    monkeypatch.chdir(folder)
    for block in blocks(ROOT / page, "python"):
        exec(block, names)
    return names


def test_python_examples_of_the_readme_run(folder, monkeypatch, capsys):
    image, prompt = picture(), "<image>What is this?"
    names = run_examples("README.md", folder, monkeypatch, image=image, prompt=prompt)
    trace = names["fast"].dpn.trace
    assert trace.share == [pytest.approx(0.5, abs=0.1)]  # 4 tokens a tile
    assert capsys.readouterr().out.splitlines()[0] == repr(trace)
    assert names["fast"].config.model_type == "idefics3"
    assert names["model"].config.router_config["name"] == "fastv"


def test_python_examples_of_compress_run(folder, monkeypatch, capsys):
    names = run_examples("docs/compress.md", folder, monkeypatch)
    assert names["trace"].share == [pytest.approx(0.5, abs=0.1)]
    *_, survived = capsys.readouterr().out.splitlines()
    assert len(json.loads(survived)) == 5  # tiles


def test_shares_by_the_size_of_an_image():
    """The table of docs/compress.md."""
    text = TextShape.from_config(
        Qwen2_5_VLTextConfig(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
        )
    )
    page = (ROOT / "docs/compress.md").read_text()
    (head,) = re.findall(r"^\| tokens of the image \|(.*)\|$", page, re.M)
    sides = [int(cell.split(" x ")[0]) for cell in head.split("|")]
    rows = re.findall(r"^\| `(\w+) keep=0\.5` \|(.*)\|$", page, re.M)
    assert len(rows) == 3
    for name, cells in rows:
        solved = routers.build(name, keep=0.5, text=text, grid=(32, 32)).strength
        found = [routers.build(name, text=text, grid=(n, n)).share(solved) for n in sides]
        assert [f"{share:.3f}" for share in found] == [cell.strip() for cell in cells.split("|")]


@pytest.mark.slow
def test_python_examples_of_hugging_face_run(folder, monkeypatch, capsys):
    names = run_examples("docs/hugging_face.md", folder, monkeypatch)
    assert "{0: '" in capsys.readouterr().out  # a route
    assert names["model"].config.router_config["name"] == "fastv"
