"""Kill training runs at random moments and compare how they end with undisturbed runs.

    python -m experiments.reliability.kills [key=value ...]    # writes kills.json

A run (`debug=fast`) is sent SIGKILL at a uniformly random moment, between its start and the time
that an undisturbed run takes, and the same command is repeated and killed in the same way until it
ends before its kill. Its weights, metrics, answers and curves must equal those of an undisturbed
run of this seed to the last digit, and nothing temporary may be left in its folder. Runs with
further seeds follow until 40 kills were sent.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dpn.common.files import read_json, read_rows, write_json
from dpn.common.progress import Bar
from dpn.runs.commit import commit
from tests.app.conftest import timeless, without_times

HERE = Path(__file__).parent
OUTPUTS = Path("outputs/kills")
KILLS = 40


def command(root: Path, seed: int) -> list[str]:
    """The command of a run, with a checkpoint every 2 steps and one thread, as threads may round
    sums in another order.
    """
    overrides = ["debug=fast", "callbacks.checkpoint.every_n_train_steps=2", *sys.argv[1:]]
    return [
        sys.executable,
        "-m",
        "dpn.train",
        *overrides,
        f"seed={seed}",
        f"paths.output_root={root}",
    ]


def run(arguments: Sequence[str], log: Path, kill_after: float | None = None) -> int:
    """Run a command, and kill it after some seconds; returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            arguments,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            return process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


def results(root: Path) -> list[Any]:
    """Everything of a run that must be equal, and what must not be there."""
    (folder,) = (root / "main").iterdir()
    return [
        (folder / "model" / "model.safetensors").read_bytes(),
        timeless(read_json(folder / "metrics.json")),
        without_times(read_rows(folder / "rows.jsonl")),
        [timeless(row) for row in read_rows(folder / "curves.jsonl")],
        sorted(str(path) for path in folder.rglob("*.tmp")),
    ]


def killed_run(seed: int, rng: random.Random) -> dict[str, Any]:
    """Train a run undisturbed and another one with kills, and compare them."""
    whole, other = OUTPUTS / f"whole-{seed}", OUTPUTS / f"killed-{seed}"
    begun = time.monotonic()
    assert run(command(whole, seed), whole.with_suffix(".log")) == 0
    duration = time.monotonic() - begun
    kills: list[dict[str, Any]] = []
    while True:
        moment = rng.uniform(0, duration)
        status = run(command(other, seed), other.with_suffix(".log"), moment)
        if status != -signal.SIGKILL:
            break
        states = [read_json(path) for path in (other / "main").glob("*/status.json")]
        state = states[0]["status"] if states else None
        kills.append({"share_of_the_run": round(moment / duration, 3), "status": state})
    assert status == 0
    return {"seed": seed, "kills": kills, "same_as_undisturbed": results(whole) == results(other)}


def main() -> None:
    if OUTPUTS.exists():
        sys.exit(f"{OUTPUTS} exists; remove it, since an earlier run there would be continued.")
    rng, runs, sent = random.Random(0), list[dict[str, Any]](), 0
    with closing(Bar("kills", KILLS)) as bar:
        while sent < KILLS:
            runs.append(killed_run(len(runs), rng))
            sent += len(runs[-1]["kills"])
            bar.move(min(sent, KILLS))
            found = {
                "command": " ".join(["python -m experiments.reliability.kills", *sys.argv[1:]]),
                "commit": commit(),
                "kills": sent,
                "equal": sum(run["same_as_undisturbed"] for run in runs),
                "of": len(runs),
                "runs": runs,
            }
            write_json(HERE / "kills.json", found)
    print(json.dumps({name: found[name] for name in ("kills", "equal", "of")}))


if __name__ == "__main__":
    main()
