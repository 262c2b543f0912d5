import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import dpn

PACKAGE = Path(dpn.__file__).parent
ROOT = PACKAGE.parent
# Each imports only from those before it.
ORDER = [
    *(
        "common",
        "tokens",
        "cost",
        "data",
        "vision",
        "projectors",
        "routers",
        "sections",
        "runs",
        "checks",
        "decoder",
        "model",
        "checkpoints",
    ),
    *("losses", "metrics", "reports"),
]


def imports(path: Path) -> set[str]:
    """Parts of dpn that a file imports, also inside functions."""
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


def files_of(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", ORDER)
def test_imports_point_one_way(part):
    later = set(ORDER[ORDER.index(part) + 1 :])
    wrong = {str(path): imports(path) & later for path in files_of(part)}
    assert not {path: parts for path, parts in wrong.items() if parts}


def test_every_part_of_the_order_exists():
    assert all(path.exists() for part in ORDER for path in files_of(part))
    assert "sections" in imports(PACKAGE / "training" / "module.py")  # the test does see imports


def test_only_front_doors_build():
    doors = {"train", "eval", "bench", "plan", "apply"}
    users = {p.stem for p in PACKAGE.rglob("*.py") if "build" in imports(p)}
    assert users <= doors


def test_integrations_are_imported_by_others_alone():
    assert not [path for path in PACKAGE.rglob("*.py") if "integrations" in imports(path)]


@pytest.mark.slow
def test_model_and_routers_import_nothing_heavy():
    heavy = ("lightning", "hydra", "omegaconf", "wandb", "datasets", "matplotlib", "torchmetrics")
    code = f"import sys, dpn.model, dpn.routers; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_wheel_works_from_any_directory(tmp_path):
    """The wheel in an environment without the checkout; its dependencies come from this one."""
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
    compose = "from dpn.launch import CONFIG_DIR, compose; print(CONFIG_DIR); compose('train')"
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
