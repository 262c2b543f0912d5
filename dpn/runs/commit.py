"""Which commit of the code made a run or a number."""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def commit(*also: str) -> str | None:
    """The checkout's short commit, with a + if what makes numbers was changed since; None for an
    installed package.

    Args:
        also: paths to look at besides the package and its configs, relative to the checkout.
    """
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + "+" * bool(_git("status", "--porcelain", "--", "dpn", "configs", *also))
    except (OSError, subprocess.CalledProcessError):  # no git, or none that may look
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
