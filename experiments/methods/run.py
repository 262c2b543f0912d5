"""Compare all methods at equal budgets, applied to a trained model and trained with it.

    python experiments/methods/run.py                       # all missing runs, hours on 2 cores
    python experiments/methods/run.py fastv vtw --keeps 0.5 # some of them
    python experiments/methods/run.py --speed               # prefill times, on an idle machine
    python experiments/methods/run.py --table               # only write table.md and the figure

Every run starts from the run of `router=none` with its seed, which is trained first. Each finished
run is appended to results.jsonl with its command and commit, and is not repeated.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from typing import Any

from methods import KEEPS, METHODS, MORE, Job, base, jobs
from results import FAMILIES, HERE, RESULTS, SPEED, append, draw, read, table

from dpn.bench import bench
from dpn.cli.door import set_up_logging
from dpn.common.files import read_json
from dpn.config.compose import compose
from dpn.runs.commit import commit
from dpn.runs.request import ConfigError
from dpn.train import train

#: A decoder so large that its matrix products cost more than the calls.
BENCH = (
    "model.text.hidden_size=512",
    "model.text.intermediate_size=1376",
    "model.vision.image_size=128",
    "batch_size=2",
    "new_tokens=1",
    "train=false",
    "pairs=11",
)


def prepare(seed: int) -> None:
    """Train the base run and compute the scores of its heads and the ranking of its layers."""
    train(compose("train", ["router=none", f"seed={seed}"]))
    tool = HERE.parents[1] / "tools" / "search.py"
    for router, file in (
        ("head_pruning", "head_scores.json"),
        ("redundancy_lens", "layer_ranking.json"),
    ):
        if not (base(seed) / file).exists():
            command = [sys.executable, str(tool), f"run={base(seed)}", f"router={router}"]
            subprocess.run(command, check=True)


def run(job: Job) -> None:
    """Run a job and append its row."""
    print("python -m dpn.train", *job.overrides, flush=True)
    folder = train(replace(compose("train", job.overrides), in_sweep=True))
    status = read_json(folder / "status.json") or {}
    row: dict[str, Any] = {
        **vars(job),
        "status": status["status"],
        "command": " ".join(["python -m dpn.train", *job.overrides]),
        "commit": status.get("commit"),
    }
    if status["status"] == "finished":
        metrics, plain = (read_json(f / "metrics.json") or {} for f in (folder, base(job.seed)))
        row |= {
            "accuracy": {family: metrics[f"val/accuracy/{family}"] for family in FAMILIES},
            "share": metrics["cost/visual_macs_ratio"],
            "flops": metrics["cost/prefill_flops"] / plain["cost/prefill_flops"],
        }
    append(RESULTS, row)


def time_prefill(name: str) -> None:
    """Measure the prefill time against no compression, with random weights.

    The target is 0.5, or the first of the others that the method can reach.
    """
    for keep in METHODS[name].keeps:
        overrides = [*Job(name, "timed", keep, 0).choice, *BENCH]
        print("python -m dpn.bench", *overrides, flush=True)
        try:
            (found,) = bench(compose("bench", overrides))
            break
        except ConfigError as problem:
            print(problem)
    else:
        return
    ratio = found["time/prefill"]
    append(
        SPEED,
        {
            "method": name,
            "keep": keep,
            "command": " ".join(["python -m dpn.bench", *overrides]),
            "commit": commit(),
            "share": found["cost/visual_macs_ratio"],
            "flops": found["cost/prefill_flops_ratio"],
            "time": ratio.ratio,
            "interval": [ratio.low, ratio.high],
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=[[], *METHODS], help="default: all")
    parser.add_argument("--keeps", type=float, nargs="+", default=(*KEEPS, MORE))
    parser.add_argument("--how", choices=["applied", "trained"], help="default: both")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--speed", action="store_true", help="time prefill instead")
    parser.add_argument("--table", action="store_true", help="only write table and figure")
    options = parser.parse_args()
    set_up_logging()
    names = options.methods or list(METHODS)
    if options.speed:
        done = {row["method"] for row in read(SPEED)}
        for name in names:
            if name not in done:
                time_prefill(name)
    elif not options.table:
        done = {(r["method"], r["how"], r["keep"], r["seed"]) for r in read(RESULTS)}
        for job in jobs(names, options.keeps):
            wanted = job.seed in options.seeds and options.how in (None, job.how)
            if wanted and tuple(vars(job).values()) not in done:
                prepare(job.seed)
                run(job)
    (HERE / "table.md").write_text(table())
    draw()


if __name__ == "__main__":
    main()
