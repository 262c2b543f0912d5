"""The commit of the code that makes a run or a number."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def commit(*also: str) -> str | None:
    """Short commit of the checkout, with a + if package or configs have uncommitted changes; None
    for an installed package.

    Args:
        also: Further paths, relative to the checkout, whose changes count.
    """
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + "+" * bool(_git("status", "--porcelain", "--", "dpn", "configs", *also))
    except (OSError, subprocess.CalledProcessError):  # git is missing, or refuses
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
