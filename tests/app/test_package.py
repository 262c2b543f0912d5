import ast
import os
import re
import subprocess
import sys
import sysconfig
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dpn

PACKAGE = Path(dpn.__file__).parent
ROOT = PACKAGE.parent
#: Folders, each importing only from those before it.
FOLDERS = [
    *("common", "tokens", "metrics", "cost", "vision", "data", "projectors", "routers"),
    *("benchmarks", "runs", "decoder", "families", "losses", "reports", "model", "compressed"),
    *("checkpoints", "inference", "training", "measure", "config", "cli"),
]
#: Modules that users run or import. They may import every folder.
DOORS = [
    *("__init__", "train", "eval", "bench", "plan", "generate", "chat", "route", "report"),
    *("verify", "dialogue"),
]
#: Folders that only other programs import.
ADAPTERS = ["integrations"]


def imports(path: Path) -> set[str]:
    """Return the entries of `dpn/` that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dpn":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpn."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("dpn.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return found


def entry(path: Path) -> str:
    """Return the entry of `dpn/` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_entry_is_listed():
    found = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != "."}
    assert sorted(found - {"__pycache__"}) == sorted([*FOLDERS, *DOORS, *ADAPTERS])
    assert len(DOORS) <= 12
    assert len([*FOLDERS, *ADAPTERS]) <= 23


def test_imports_point_one_way():
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        folder = entry(path)
        allowed = {*FOLDERS, *DOORS} if folder in {*DOORS, *ADAPTERS} else set()
        if folder in FOLDERS:
            allowed = set(FOLDERS[: FOLDERS.index(folder) + 1])
        if extra := imports(path) - allowed:
            wrong[str(path)] = extra
    assert not wrong
    assert "model" in imports(PACKAGE / "training" / "module.py")  # imports are found


def test_files_of_a_folder_import_each_other_without_a_circle():
    for folder in FOLDERS:
        modules = {
            ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
            for path in (PACKAGE / folder).rglob("*.py")
        }
        graph = {name: top_level_imports(path) & modules.keys() for name, path in modules.items()}
        TopologicalSorter(graph).prepare()  # raises CycleError


def top_level_imports(path: Path) -> set[str]:
    """Return the full names of the modules of dpn that a file imports outside of functions, also
    for type checking only.
    """
    found = set()
    body = ast.parse(path.read_text()).body
    guarded = [node for block in body if isinstance(block, ast.If) for node in block.body]
    for node in [*body, *guarded]:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dpn."):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("folder", [*FOLDERS, *ADAPTERS])
def test_docstrings_of_folders_list_their_imports(folder):
    init = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    *purpose, last = (ast.get_docstring(init) or "").split("\n\n")
    assert purpose
    used = set().union(*map(imports, (PACKAGE / folder).rglob("*.py"))) - {folder}
    if last != "May import every folder below it.":
        assert last.startswith("Imports ")
        assert set(re.findall(r"`([a-z]+)`", last)) == used


def test_private_files_stay_in_their_folder():
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        own = f"dpn.{entry(path)}."
        private = {n for n in top_level_imports(path) if "._" in n and not n.startswith(own)}
        if private:
            wrong[str(path)] = private
    assert not wrong


@pytest.mark.slow
def test_model_and_routers_import_nothing_heavy():
    heavy = ("lightning", "hydra", "omegaconf", "wandb", "datasets", "matplotlib", "torchmetrics")
    code = f"import sys, dpn.model, dpn.routers; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_wheel_works_from_any_directory(tmp_path):
    """Install it in an environment without the checkout, with the dependencies of this one."""
    wheels, home = tmp_path / "wheels", tmp_path / "env"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    compose = (
        "from dpn.config.compose import CONFIG_DIR, compose; print(CONFIG_DIR); compose('train')"
    )
    done = run(python, "-c", compose, cwd=elsewhere)
    assert Path(done.stdout.strip()) == site / "dpn" / "configs"
    assert (site / "dpn" / "reports" / "template" / "page.html").is_file()
    shown = run(home / "bin" / "dpn-train", "--cfg", "job", "router=static", cwd=elsewhere)
    assert "name: static" in shown.stdout
    refused = run(home / "bin" / "dpn-train", "routr=static", cwd=elsewhere, check=False)
    assert "did you mean `router`?" in refused.stderr
    assert list(elsewhere.iterdir()) == []


def run(*command, cwd, check=True):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=check)
