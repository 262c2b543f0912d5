"""A method that the tool starts is whole: it passes the contract tests as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(root, name):
    command = [sys.executable, str(root / "tools" / "new_method.py"), name]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


@pytest.fixture
def copy(tmp_path):
    """What the tool and the tests need of this checkout."""
    for folder in ("dpn", "configs", "tests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_two_files_and_no_second_time(copy):
    assert start(copy, "half_of_it").stdout.split() == [
        *("wrote", "dpn/routers/half_of_it.py"),
        *("wrote", "configs/router/half_of_it.yaml"),
    ]
    assert "class HalfOfItRouter(" in (copy / "dpn/routers/half_of_it.py").read_text()
    again = start(copy, "half_of_it")
    assert again.returncode == 1
    assert "dpn/routers/half_of_it.py exists" in again.stderr


@pytest.mark.parametrize("name", ["Fast", "a-b", "1st", "_own", "base", "class", "../x"])
def test_a_name_that_is_none_is_refused(copy, name):
    before = sorted(copy.rglob("*.py"))
    assert start(copy, name).returncode == 1
    assert sorted(copy.rglob("*.py")) == before


@pytest.mark.slow
def test_it_passes_the_contracts(copy):
    assert start(copy, "half_of_it").returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    tests = ["-n", "0", "tests/core/test_router_contracts.py", "-k", "half_of_it"]
    command = [sys.executable, "-m", "pytest", *tests]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
