"""Kill training runs at random moments and compare how they end with undisturbed runs.

    python -m experiments.reliability.kills [key=value ...]    # writes kills.json

Each of 8 runs (`debug=fast`, seeds 0 to 7) is sent SIGKILL 5 times, each time at a uniformly random
moment of the command, from its start to the time that an undisturbed run takes; then the same
command finishes it. Its weights, metrics, answers and curves must equal those of an undisturbed
run of this seed to the last digit, and nothing temporary may be left in its folder.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpn.common.files import read_json, read_rows, write_json
from dpn.common.progress import progress
from dpn.runs.commit import commit
from tests.app.conftest import timeless, without_times

HERE = Path(__file__).parent
OUTPUTS = Path("outputs/kills")
SEEDS, KILLS = range(8), 5


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
    kills = []
    for _ in range(KILLS):
        moment = rng.uniform(0, duration)
        status = run(command(other, seed), other.with_suffix(".log"), moment)
        states = [read_json(path) for path in (other / "main").glob("*/status.json")]
        kills.append(
            {
                "share_of_the_run": round(moment / duration, 3),
                "exit": status,
                "status": states[0]["status"] if states else None,
            }
        )
    assert run(command(other, seed), other.with_suffix(".log")) == 0
    return {"seed": seed, "kills": kills, "same_as_undisturbed": results(whole) == results(other)}


def main() -> None:
    if OUTPUTS.exists():
        sys.exit(f"{OUTPUTS} exists; remove it, since an earlier run there would be continued.")
    rng = random.Random(0)
    runs = [killed_run(seed, rng) for seed in progress(SEEDS, "runs", len(SEEDS))]
    sent = sum(kill["exit"] == -signal.SIGKILL for run in runs for kill in run["kills"])
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
