"""`dpn.compress` with the oldest supported transformers, in the environment of `make oldest`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import vlms

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-oldest" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="The environment is not there; run make oldest"),
]


def test_every_family():
    done = subprocess.run(
        [PYTHON, "-m", "tests.integrations.oldest_transformers"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    wanted = re.search(r'"transformers>=([\d.]+)', (ROOT / "pyproject.toml").read_text())[1]
    assert lines[0] == f"transformers {wanted}.0"
    assert len(lines) == 1 + len(vlms.NAMES) + len(vlms.VIDEO_NAMES)
