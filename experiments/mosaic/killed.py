"""Compare a sweep that is killed twice and repeated with an undisturbed one.

    python -m experiments.mosaic.killed [key=value ...]    # writes killed.json

Runs are written to outputs/killed and outputs/whole; overrides apply to every job. Four jobs run in
parallel. SIGKILL is sent once to the sweep itself and once to a job. When
outputs/killed/attempts.json exists, repeating the script continues with the undisturbed sweep.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dpn.common.files import read_json, read_rows, write_json
from dpn.runs.commit import commit
from tests.app.conftest import timeless, without_times
from tests.app.sweep_watch import SweepWatch, outcomes

HERE = Path(__file__).parent
JOBS = ["sweep=pareto", "router.keep=0.45", *sys.argv[1:]]
BESIDE = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
SWEEP = ["-m", "dpn.train", "-m", *JOBS, *BESIDE]
OUTPUTS = Path("outputs")


def sweep(name: str) -> SweepWatch:
    """Return the sweep with its outputs in a folder of this name."""
    outputs = OUTPUTS / name
    return SweepWatch([sys.executable, *SWEEP, f"paths.output_root={outputs}"], outputs)


def killed() -> list[dict[str, Any]]:
    """Kill the sweep, then a job, then let it finish; return the outcomes of the jobs each time."""
    watch = sweep("killed")
    watch.start()
    watch.some_run_has_a_checkpoint()
    watch.kill()
    attempts: list[dict[str, Any]] = [{"killed": "the sweep", "jobs": _states(watch)}]

    watch.start()
    os.kill(watch.some_run_has_a_checkpoint(), signal.SIGKILL)
    status = watch.end()
    found = outcomes(watch.outputs)
    attempts.append({"killed": "a job", "exit": status, "jobs": found})

    watch.start()
    status = watch.end()
    attempts.append({"killed": "nothing", "exit": status, "jobs": outcomes(watch.outputs)})
    return attempts


def _states(watch: SweepWatch) -> dict[str, str]:
    files = sorted(watch.outputs.glob("main/*/status.json"))
    return {file.parent.name: read_json(file)["status"] for file in files}


def equal() -> dict[str, bool]:
    """Return whether each run of both sweeps has the same metrics, answers and curves."""
    names = sorted(folder.name for folder in (OUTPUTS / "whole" / "main").iterdir())
    runs = (OUTPUTS / name / "main" for name in ("whole", "killed"))
    whole, other = ([_timeless_results(folder / name) for name in names] for folder in runs)
    return {name: mine == theirs for name, mine, theirs in zip(names, whole, other, strict=True)}


def _timeless_results(folder: Path) -> list[Any]:
    curves = [timeless(row) for row in read_rows(folder / "curves.jsonl")]
    answers = without_times(read_rows(folder / "rows.jsonl"))
    return [timeless(read_json(folder / "metrics.json")), answers, curves]


def main() -> None:
    asked = {"command": " ".join(["python", *SWEEP]), "commit": commit()}
    done = OUTPUTS / "killed" / "attempts.json"
    found: dict[str, Any] = read_json(done) or {**asked, "attempts": killed()}
    if any(found[name] != asked[name] for name in asked):
        sys.exit(
            f"{done} is of `{found['command']}` at commit {found['commit']}, now it is"
            f" `{asked['command']}` at {asked['commit']}: repeat that one, or remove"
            f" {OUTPUTS / 'killed'} and {OUTPUTS / 'whole'}."
        )
    write_json(done, found)
    watch = sweep("whole")
    watch.start()
    assert watch.end() == 0
    found["same_as_undisturbed"] = equal()
    write_json(HERE / "killed.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
