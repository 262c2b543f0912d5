"""Watch a sweep in its own process: which process writes which folder, and that none is left."""

import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from dpn.common.files import read_json
from dpn.common.lifeline import alive


def outcomes(outputs: Path) -> dict[str, str]:
    """Outcome of each job in the one sweep below a folder, as summary.md has it."""
    (summary,) = (outputs / "multirun").glob("*/summary.md")
    lines = [line.split(" | ") for line in summary.read_text().splitlines() if line[:1] == "|"]
    return {line[0].removeprefix("| "): line[1] for line in lines[2:]}


class SweepWatch:
    """Watches the runs below a folder while a command writes them.

    Args:
        command: command of a sweep.
        outputs: its `paths.output_root`.
    """

    def __init__(self, command: Sequence[str], outputs: Path) -> None:
        self.command, self.outputs = command, outputs
        self.log = outputs.with_suffix(".log")
        self.writers: dict[Path, int] = {}

    def start(self) -> None:
        """Start the command, or repeat it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stderr=log)

    def look(self) -> dict[Path, int]:
        """Processes of the live runs by their `status.json`; a folder may get another process only
        when the one before is dead.
        """
        running = {}
        for path in self.outputs.glob("main/*/status.json"):
            status = read_json(path)
            before = self.writers.get(path, status["pid"])
            assert before == status["pid"] or not alive(before), f"{path} has two writers."
            self.writers[path] = status["pid"]
            if status["status"] == "running" and alive(status["pid"]):
                running[path] = status["pid"]
        return running

    def some_run_has_a_checkpoint(self) -> int:
        """Wait until some run has a checkpoint; returns the process of that run."""
        while True:
            assert self.process.poll() is None, "The sweep ended too soon."
            for path, pid in self.look().items():
                if any(path.parent.glob("checkpoints/*.ckpt")):
                    return pid
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill the sweep itself; all processes that it started have to end."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _are_gone(family)

    def end(self) -> int:
        """Wait until the command and all that it started have ended; its exit status."""
        family: set[psutil.Process] = set()
        while self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                family |= {*psutil.Process(self.process.pid).children(recursive=True)}
            self.look()
            time.sleep(0.1)
        _are_gone(family)
        return self.process.wait()


def _are_gone(family: Collection[psutil.Process]) -> None:
    psutil.wait_procs(list(family), timeout=10)
    left = [process for process in family if alive(process.pid)]
    assert not left, f"{left} are left."
