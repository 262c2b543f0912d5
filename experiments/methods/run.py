"""Every method at equal budgets: on the trained model as it is, and trained with it.

    python experiments/methods/run.py                       # all that is missing, hours on 2 cores
    python experiments/methods/run.py fastv vtw --keeps 0.5 # some of it
    python experiments/methods/run.py --speed               # prefill times, on an idle machine
    python experiments/methods/run.py --table               # only write table.md and the figure

Every run starts from the run of `router=none` with its seed, which is made first. Each finished run
is appended to results.jsonl at once, with its command and commit, and is not repeated.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dpn.bench import bench
from dpn.config import ConfigError
from dpn.files import read_json
from dpn.launch import compose, set_up_logging
from dpn.run_folder import run_path
from dpn.train import train

HERE = Path(__file__).parent
RESULTS, SPEED = HERE / "results.jsonl", HERE / "speed.jsonl"
FAMILIES = ("coarse", "medium", "fine")
KEEPS = (0.5, 0.25, 0.75)
#: What `head_pruning` can still spend.
MORE = 0.8
#: Of a share: three at 0.5, one elsewhere.
SEEDS = {0.5: (0, 1, 2)}
#: 60 steps after the 400 of the base, at half of its learning rates.
TUNED = ("stage=finetune", "trainer.max_steps=60", "optim.lr=0.01", "optim.other_lr=5e-4")
#: A decoder large enough for its matrices to cost more than the calls.
BENCH = (
    "model.text.hidden_size=512",
    "model.text.intermediate_size=1376",
    "model.vision.image_size=128",
    "batch_size=2",
    "train=false",
    "pairs=11",
)


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        part: `router` or `projector`.
        acts: where.
        free: whether it works on a model that was trained without it.
        trained: overrides with which it is trained; None: it never is.
        start: what training begins with; a projector of a new kind takes the other parts.
        own: further overrides; `{base}` is the run it starts from.
        keeps: shares to ask for; None where it has none.
    """

    part: str
    acts: str
    free: bool = True
    trained: tuple[str, ...] | None = TUNED
    start: tuple[str, ...] = ("init.model={base}",)
    own: tuple[str, ...] = ()
    keeps: tuple[float | None, ...] = KEEPS


#: Only the gates learn.
_GATES = ("stage=gates", "trainer.max_steps=60", "router.hidden=96")
#: What `tools/head_scores.py` makes of the base.
_SCORES = ("router.scores={base}/head_scores.json",)
#: What `tools/find_layers.py` makes of it.
_RANKING = ("router.ranking={base}/layer_ranking.json",)
#: The projector is a new one.
_NEW = ("init.language={base}", "init.vision={base}")
_BETWEEN, _BEFORE, _WITHIN = "between layers", "before the decoder", "within layers"
METHODS = {
    "none": Method("router", "nowhere", keeps=(None,)),
    "random": Method("router", _BETWEEN),
    "static": Method("router", _BETWEEN),
    "dpe": Method("router", _BETWEEN, free=False),
    "fastv": Method("router", _BETWEEN, trained=None),
    "pyramid_drop": Method("router", _BETWEEN),
    "sparsevlm": Method("router", _BETWEEN, trained=None),
    "vtw": Method("router", _BETWEEN, trained=None),
    "aim": Method("router", _BETWEEN, trained=None),
    "dyvte": Method("router", _BETWEEN, free=False, trained=_GATES),
    "layer_drop": Method("router", _WITHIN),
    "neighbor_attention": Method("router", _WITHIN, keeps=(None,)),
    "head_pruning": Method("router", _WITHIN, own=_SCORES, keeps=(*KEEPS, MORE)),
    "sparse_ffn": Method("router", _WITHIN),
    "yopo": Method("router", _WITHIN, own=_SCORES),
    "redundancy_lens": Method("router", _WITHIN, trained=None, own=_RANKING),
    "depth_routing": Method("router", _WITHIN, free=False),
    "random (projector)": Method("projector", _BEFORE),
    "downsample": Method("projector", _BEFORE),
    "pooled": Method("projector", _BEFORE),
    "divprune": Method("projector", _BEFORE, trained=None),
    "visionzip": Method("projector", _BEFORE, trained=None),
    "prumerge": Method("projector", _BEFORE),
    "prumerge_plus": Method("projector", _BEFORE),
    "dfmr": Method("projector", _BEFORE),
    "matryoshka_pool": Method("projector", _BEFORE),
    "matryoshka_query": Method(
        "projector", _BEFORE, free=False, start=_NEW, own=("projector.queries=64",)
    ),
    "token_packer": Method("projector", _BEFORE, free=False, start=_NEW),
    "query_conv": Method("projector", _BEFORE, free=False, start=_NEW),
    "dense_connector": Method(
        "projector", "before it, no compression", free=False, start=_NEW, keeps=(None,)
    ),
}


@dataclass(frozen=True)
class Job:
    """One run: a method, `applied` or `trained`, at a share, with a seed."""

    method: str
    how: str
    keep: float | None
    seed: int

    @property
    def choice(self) -> list[str]:
        """What chooses the method and its share."""
        method = METHODS[self.method]
        chosen = [f"{method.part}={self.method.split()[0]}"]
        chosen += self._based(method.own)
        if method.part == "projector":
            chosen.append("router=none")
        if self.keep is not None:
            chosen.append(f"{method.part}.keep={self.keep}")
        return chosen

    @property
    def overrides(self) -> list[str]:
        """The whole command."""
        if self.how == "applied":
            return [*self.choice, "stage=apply", f"seed={self.seed}"]
        method = METHODS[self.method]
        settings = (*(method.trained or ()), *self._based(method.start))
        return [*self.choice, *settings, f"seed={self.seed}"]

    def _based(self, overrides: Sequence[str]) -> list[str]:
        return [o.format(base=base(self.seed)) for o in overrides]


def base(seed: int) -> Path:
    """The run that all of a seed start from."""
    return run_path(compose("train", ["router=none", f"seed={seed}"]))


def prepare(seed: int) -> None:
    """Make the base, the scores of its heads and the ranking of its layers."""
    train(compose("train", ["router=none", f"seed={seed}"]))
    tools = HERE.parents[1] / "tools"
    for file, tool, *arguments in (
        ("head_scores.json", "head_scores.py"),
        ("layer_ranking.json", "find_layers.py", "method=redundancy_lens"),
    ):
        if not (base(seed) / file).exists():
            command = [sys.executable, tools / tool, f"run={base(seed)}", *arguments]
            subprocess.run(command, check=True)


def jobs(names: Sequence[str], keeps: Sequence[float]) -> Iterator[Job]:
    """All runs, the first seeds of all methods first."""
    for seed in (0, 1, 2):
        for how in ("applied", "trained"):
            for keep in (None, *keeps):
                for name in names:
                    method = METHODS[name]
                    possible = method.free if how == "applied" else method.trained is not None
                    known = keep in method.keeps and seed in SEEDS.get(keep or 0.5, (0,))
                    if possible and known:
                        yield Job(name, how, keep, seed)


def run(job: Job) -> None:
    """Do it and append a row."""
    changed = _git("status", "--porcelain", "--", "dpn", "configs")
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    print("python -m dpn.train", *job.overrides, flush=True)
    folder = train(replace(compose("train", job.overrides), in_sweep=True))
    status = read_json(folder / "status.json") or {}
    row: dict[str, Any] = {
        **vars(job),
        "status": status["status"],
        "command": " ".join(["python -m dpn.train", *job.overrides]),
        "commit": commit,
    }
    if status["status"] == "finished":
        metrics, plain = (read_json(f / "metrics.json") or {} for f in (folder, base(job.seed)))
        row |= {
            "accuracy": {family: metrics[f"val/accuracy/{family}"] for family in FAMILIES},
            "share": metrics["cost/visual_macs_ratio"],
            "flops": metrics["cost/prefill_flops"] / plain["cost/prefill_flops"],
        }
    _append(RESULTS, row)


def time_prefill(name: str) -> None:
    """Prefill of random weights against no compression, at half of the visual work, or at the first
    of the other shares that the method can spend.
    """
    for keep in METHODS[name].keeps:
        overrides = [*Job(name, "timed", keep, 0).choice, *BENCH]
        print("python -m dpn.bench", *overrides, flush=True)
        try:
            found = bench(compose("bench", overrides))
            break
        except ConfigError as problem:
            print(problem)
    else:
        return
    ratio = found["time/prefill"]
    _append(
        SPEED,
        {
            "method": name,
            "keep": keep,
            "command": " ".join(["python -m dpn.bench", *overrides]),
            "commit": _git("rev-parse", "--short", "HEAD"),
            "share": found["cost/visual_macs_ratio"],
            "flops": found["cost/prefill_flops_ratio"],
            "time": ratio.ratio,
            "interval": [ratio.low, ratio.high],
        },
    )


def table() -> str:
    """A line for each method, way and share."""
    groups, speed = _groups(), {(row["method"], row["keep"]): row for row in _read(SPEED)}
    head = ["method", "acts", "", "asked", "seeds", *FAMILIES, "share reached", "prefill FLOPs"]
    lines = [[*head, "timed at: FLOPs", "time"], ["---"] * (len(head) + 2)]
    for (name, how, keep), rows in groups.items():
        asked = "" if keep is None else str(keep)
        line = [f"`{name}`", METHODS[name].acts, how, asked, str(len(rows))]
        if rows[0]["status"] == "unreachable":
            lines.append([*line, "unreachable", *[""] * 6])
            continue
        cells = [[r["accuracy"][f] for r in rows] for f in FAMILIES]
        cells += [[r["share"] for r in rows], [r["flops"] for r in rows]]
        at = speed.get((name, keep))
        lines.append([*line, *map(_spread, cells), *(_timed(at) if at else ("", ""))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw() -> None:
    """Accuracy against the share reached: inside the decoder and before it, applied and trained."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for line, part in zip(panels, ("router", "projector"), strict=True):
        names = [n for n, m in METHODS.items() if n == "none" or m.part == part]
        for axes, how in zip(line, ("applied", "trained"), strict=True):
            for number, name in enumerate(names):
                points = _points(name, how)
                style = {"color": f"C{number % 10}", "marker": "os^vD"[number // 10 % 5]}
                if name.startswith(("random", "downsample", "none")):
                    style |= {"color": "black", "marker": "*x+"[number % 3], "linestyle": ":"}
                axes.plot(*points, label=name, markersize=7, **style)
            where = "inside the decoder" if part == "router" else "before the decoder"
            titles = {"applied": "to the model of router=none", "trained": "60 more steps with it"}
            axes.set(title=f"{where}, {how}: {titles[how]}", xlim=(0.15, 1.03), ylim=(0, 1.03))
            axes.grid(alpha=0.3)
        line[0].set_ylabel("accuracy, mean of the families")
        line[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    for axes in panels[1]:
        axes.set_xlabel("share of visual MACs reached")
    figure.savefig(HERE / "accuracy.png", dpi=110)


Key = tuple[str, str, float | None]


def _groups() -> dict[Key, list[dict[str, Any]]]:
    """The rows of all seeds by method, way and share, in the order of `METHODS`."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in _read(RESULTS):
        found.setdefault((row["method"], row["how"], row["keep"]), []).append(row)
    keys = itertools.product(METHODS, ("applied", "trained"), (None, *sorted((*KEEPS, MORE))))
    return {key: found[key] for key in keys if key in found}


def _points(name: str, how: str) -> tuple[list[float], list[float]]:
    """Shares and accuracies of a method, means over seeds."""
    points = []
    for (method, way, _), rows in _groups().items():
        if (method, way) == (name, how) and rows[0]["status"] == "finished":
            right = fmean(fmean(r["accuracy"].values()) for r in rows)
            points.append((fmean(r["share"] for r in rows), right))
    points.sort()
    return [share for share, _ in points], [right for _, right in points]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _timed(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["interval"]
    return f"{row['flops']:.2f}", f"{row['time']:.2f} [{low:.2f}, {high:.2f}]"


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _git(*arguments: str) -> str:
    out = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return out.stdout.strip()


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
        done = {row["method"] for row in _read(SPEED)}
        for name in names:
            if name not in done:
                time_prefill(name)
    elif not options.table:
        done = {(r["method"], r["how"], r["keep"], r["seed"]) for r in _read(RESULTS)}
        for job in jobs(names, options.keeps):
            wanted = job.seed in options.seeds and options.how in (None, job.how)
            if wanted and tuple(vars(job).values()) not in done:
                prepare(job.seed)
                run(job)
    (HERE / "table.md").write_text(table())
    draw()


if __name__ == "__main__":
    main()
