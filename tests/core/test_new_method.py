"""A new part is one file and one YAML, which checks, sweeps and contract tests find."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
#: Per kind: option of the tool, and its contract tests.
KINDS = {"router": [], "projector": ["--projector"]}


def start(root, *arguments):
    command = [sys.executable, str(root / "tools" / "new_method.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


@pytest.fixture
def copy(tmp_path):
    """A copy of what the tool and the tests need."""
    for folder in ("dpn", "configs", "tests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy, *command):
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_two_files_and_not_a_second_time(kind, copy):
    before = set(copy.rglob("*.*"))
    assert start(copy, *KINDS[kind], "half_of_it").stdout.split() == [
        *("wrote", f"dpn/{kind}s/half_of_it.py"),
        *("wrote", f"configs/{kind}/half_of_it.yaml"),
    ]
    assert len(set(copy.rglob("*.*")) - before) == 2
    code = (copy / f"dpn/{kind}s/half_of_it.py").read_text()
    assert f"class HalfOfIt{kind.capitalize()}(" in code
    again = start(copy, *KINDS[kind], "half_of_it")
    assert again.returncode == 1
    assert f"dpn/{kind}s/half_of_it.py exists" in again.stderr


def test_invalid_names_are_refused(copy):
    before = sorted(copy.rglob("*.py"))
    for name in ("Fast", "a-b", "1st", "_own", "base", "class", "../x"):
        assert start(copy, name).returncode == 1, name
    assert sorted(copy.rglob("*.py")) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_method_passes_the_contract_tests(kind, copy):
    assert start(copy, *KINDS[kind], "half_of_it").returncode == 0
    file = f"tests/core/test_{kind}_contracts.py"
    assert " passed" in run(copy, "-m", "pytest", "-n", "0", file, "-k", "half_of_it")


@pytest.mark.slow
def test_a_new_router_is_in_the_sweep_over_methods(copy):
    assert start(copy, "half_of_it").returncode == 0
    code = (
        "from dpn.config.compose import compose_jobs;"
        "print([j.config.router.name for j in compose_jobs('train', ['sweep=methods'])[1]])"
    )
    assert "'half_of_it'" in run(copy, "-c", code)


LOSS = '''"""Nothing is added to the language loss."""

import torch

from dpn.losses.base import RoutingLoss


class HalfOfItLoss(RoutingLoss):
    """Zero."""

    trains = ("dpe",)

    def forward(self, trace):
        return torch.zeros(())
'''
SOURCE = '''"""Rows of one file."""

from dataclasses import dataclass
from pathlib import Path

from dpn.data import Source, Split


@dataclass(frozen=True, kw_only=True)
class HalfOfIt(Source):
    """Trains and validates on the same rows."""

    file: str = "rows.json"

    def split(self, name):
        return Split(Path(self.file), Path())
'''
DATA_CONFIG = """# python -m dpn.train data=half_of_it
name: half_of_it
batch_size: 4
global_batch: null
max_length: 512
"""
TOWER = '''"""Two linear layers on each patch."""

import torch.nn as nn
import torch.nn.functional as F

from dpn.vision.base import VisionTower


class HalfOfItTower(VisionTower):
    """Linear layers over the pixels of each patch.

    Args:
        image_size: native height and width in pixels.
        patch_size: height and width of a patch in pixels.
        width: width of a visual token.
    """

    def __init__(self, image_size: int = 16, patch_size: int = 4, width: int = 8):
        super().__init__()
        self.image_size, self.patch_size, self.output_size = image_size, patch_size, width
        self.embed = nn.Linear(3 * patch_size**2, width)
        layers = [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.GELU()) for _ in range(8)]
        self.layers = nn.ModuleList(layers)

    def encode(self, pixels):
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size).mT
        return {"tokens": self.run(self.layers, self.embed(patches))}

    def flops(self, grid):
        linear = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return 2 * grid[0] * grid[1] * sum(layer.weight.numel() for layer in linear)
'''
BENCHMARK = '''"""Sums."""

import json

from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores


class HalfOfIt(Benchmark):
    """Questions without images, answered by a number."""

    files = (OfficialFile("half_of_it.json", "written by its test"),)

    def questions(self):
        rows = json.loads((self.root / "half_of_it.json").read_text())
        return [Question(i, asked, reference=right) for i, (asked, right) in enumerate(rows)]

    def score(self, questions, answers, folder):
        each = [float(q.reference == a) for q, a in zip(questions, answers, strict=True)]
        return Scores({"accuracy": 100 * sum(each) / len(each)}, each)
'''
#: A benchmark's contract tests need official files to read.
BENCHMARK_TEST = """def make(root):
    (root / "half_of_it.json").write_text('[["1+1", "2"], ["1+2", "3"], ["2+2", "4"]]')
"""
CHECKS = """
from dpn import benchmarks, data, losses, vision
from dpn.config import preflight
from dpn.config.compose import compose

for family in (benchmarks, data, losses, vision):
    assert "half_of_it" in family.names(), family
    assert family.resolve("half_of_it").__module__.endswith(".half_of_it")
preflight.check(compose("train", ["loss=half_of_it"]))
preflight.check(compose("train", ["data=half_of_it"]))
preflight.check(compose("train", ["model=half_of_it", "recipe=tiny", "router=none"]))
preflight.check_evaluation(compose("eval", ["run=.", "benchmarks=[half_of_it]"]))
print("all are found")
"""


@pytest.mark.slow
def test_a_loss_a_source_a_tower_and_a_benchmark_are_one_file_each(copy):
    model = yaml.safe_load((copy / "configs" / "model" / "tiny.yaml").read_text())
    files = {
        "dpn/losses/half_of_it.py": LOSS,
        "configs/loss/half_of_it.yaml": "# python -m dpn.train loss=half_of_it\nname: half_of_it\n",
        "dpn/data/sources/half_of_it.py": SOURCE,
        "configs/data/half_of_it.yaml": DATA_CONFIG,
        "dpn/vision/half_of_it.py": TOWER,
        "configs/model/half_of_it.yaml": "# python -m dpn.train model=half_of_it recipe=tiny\n"
        + yaml.safe_dump(model | {"vision": {"name": "half_of_it"}}),
        "dpn/benchmarks/half_of_it.py": BENCHMARK,
        "tests/benchmarks/test_half_of_it.py": BENCHMARK_TEST,
    }
    for path, text in files.items():
        (copy / path).write_text(text)
    assert "all are found" in run(copy, "-c", CHECKS)
    contracts = {
        "tests/vision/test_towers.py": 3,
        "tests/benchmarks/test_contracts.py": 6,
        "tests/app/test_config.py": 2,
    }
    for file, least in contracts.items():
        every = ("-m", "not gpu") if "config" in file else ()  # those of all choices are slow
        output = run(copy, "-m", "pytest", "-n", "0", file, "-k", "half_of_it", *every)
        assert int(output.rpartition(" passed")[0].split()[-1]) >= least, output
