"""Train and compare the routers on the embedded data, with three seeds each.

    python experiments/mosaic/run.py                   # all runs, a few minutes each on 2 cores
    python experiments/mosaic/run.py none dpe-hinge    # some of them
    python experiments/mosaic/run.py --table           # only write the table from results.jsonl

Each finished run is appended to results.jsonl with its command and commit, and is not repeated;
interrupted runs resume.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from dpn.common.files import read_json
from dpn.common.table import markdown
from dpn.config.compose import compose
from dpn.metrics import by_level, group_by, route_shares
from dpn.metrics.statistics import spread
from dpn.runs.path import run_path

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
SEEDS = (0, 1, 2)
FAMILIES = ("coarse", "medium", "fine")
RUNS = {
    "none": ["router=none"],
    "static": ["router=static"],
    "dpe-hinge": ["loss=hinge"],
    "paper": ["experiment=paper"],
    "pooled-2x2": ["router=none", "projector=pooled"],
    "pooled-same": ["router=none", "projector=pooled", "projector.keep={share}"],
    "random-same": ["router=random", "router.keep={share}"],
    "budget-0.45": ["loss=budget", "router.keep=0.45"],  # same as the default
    "budget-0.6": ["loss=budget", "router.keep=0.6"],
    "budget-0.8": ["loss=budget", "router.keep=0.8"],
    "policy-0.45": ["loss=policy", "router.keep=0.45"],
}
#: The runs whose routes depend on the sample.
GATED = ("dpe-hinge", "paper", "budget-0.45", "budget-0.6", "budget-0.8", "policy-0.45")
#: The run whose figures are copied to figures/.
SHOWN = "budget-0.45"
#: The run whose visual MACs ratio replaces `{share}`.
REFERENCE = "dpe-hinge"


def finished() -> list[dict[str, Any]]:
    """Read all rows of results.jsonl."""
    return (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )


def overrides(name: str, seed: int) -> list[str] | None:
    """Return a run's overrides; None if the run whose ratio it needs is missing."""
    reference = [r for r in finished() if (r["run"], r["seed"]) == (REFERENCE, seed)]
    if any("{share}" in o for o in RUNS[name]) and not reference:
        return None
    share = f"{reference[0]['share']:.3f}" if reference else ""
    return [*(o.format(share=share) for o in RUNS[name]), f"seed={seed}"]


def run(name: str, seed: int) -> None:
    """Train, evaluate and append a row."""
    arguments = overrides(name, seed)
    if arguments is None:
        print(f"{name} seed={seed} needs {REFERENCE} of that seed first", flush=True)
        return
    command = ["-m", "dpn.train", *arguments]
    print("python", *command, flush=True)
    subprocess.run([sys.executable, *command], check=True)
    folder = run_path(compose("train", arguments))
    metrics, status = (read_json(folder / file) for file in ("metrics.json", "status.json"))
    answers = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    row = {
        "run": name,
        "seed": seed,
        "command": " ".join(["python", *command]),
        "commit": status.get("commit"),
        "accuracy": {f: metrics[f"val/accuracy/{f}"] for f in FAMILIES},
        "share": metrics["cost/visual_macs_ratio"],
        "share_by_family": {
            str(f): fmean(a["visual_macs_ratio"] for a in group)
            for f, group in group_by(answers, "family").items()
        },
        "share_by_level": {
            str(family): {
                level: fmean(a["visual_macs_ratio"] for a in part)
                for level, part in by_level(group).items()
            }
            for family, group in group_by(answers, "family").items()
        },
        "routes": {str(f): route_shares(group) for f, group in group_by(answers, "family").items()},
        "train_s": metrics["time/train_s"],
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    if (name, seed) == (SHOWN, SEEDS[0]):
        for figure in ("rows.png", "routes.png"):
            shutil.copyfile(folder / "figures" / figure, HERE / "figures" / figure)


def table() -> str:
    """Make the table of mean and spread over seeds, with a line for each run."""
    groups = defaultdict(list)
    for row in finished():
        groups[row["run"]].append(row)
    head = ["run", "seeds", *FAMILIES, "visual MACs", *(f"MACs {f}" for f in FAMILIES)]
    lines = [head]
    for name in RUNS:
        rows = groups.get(name)
        if not rows:
            continue
        cells = [[r["accuracy"][f] for r in rows] for f in FAMILIES]
        cells += [[r["share"] for r in rows]]
        cells += [[r["share_by_family"][f] for r in rows] for f in FAMILIES]
        lines.append([f"`{name}`", str(len(rows)), *map(spread, cells)])
    return markdown(lines)


def levels() -> str:
    """Make the table of visual MACs ratios by family and difficulty, for routers with gates."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in finished():
        for family, shares in row["share_by_level"].items():
            for level, share in shares.items():
                groups[row["run"]][f"{family} {level}"].append(share)
    head = list(dict.fromkeys(name for group in groups.values() for name in group))
    lines = [["run", *head]]
    for run in (r for r in GATED if r in groups):
        lines.append([f"`{run}`", *(spread(groups[run][name]) for name in head)])
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", choices=[[], *RUNS], help="default: all")
    parser.add_argument("--table", action="store_true", help="only write table.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        for name in options.runs or RUNS:
            if not any((r["run"], r["seed"]) == (name, seed) for r in finished()):
                run(name, seed)
    (HERE / "table.md").write_text(table() + "\n" + levels())
    print(table())


if __name__ == "__main__":
    main()
