"""Run folders written by hand, with the files that `dpn.report` reads."""

import json
import time
from pathlib import Path

import numpy as np
import yaml

from dpn.common.files import write_json, write_rows
from dpn.metrics import accuracies, cost_metrics
from dpn.reports.overlays import draw_overlay


def write_run(
    folder: Path,
    router: str = "none",
    scores: tuple[float, ...] = (1.0, 1.0, 0.0, 1.0),
    share: float = 1.0,
    seed: int = 0,
    keep: float | None = None,
    typed: tuple[str, ...] | None = None,
    prompt: str = "Which?",
    data: dict[str, object] | None = None,
    metric: str | None = None,
) -> Path:
    """A finished run with one answer for each score, half of them of each family."""
    folder.mkdir(parents=True)
    routes = {} if router == "none" else {"1": "2x2", "2": "1x1"}
    rows = [
        {
            "id": f"val-{number}",
            "turn": 0,
            "prompt": f"{prompt} {number}",
            "reference": "a",
            "answer": "a",
            "family": ("easy", "hard")[number % 2],
            "difficulty": number // 2,
            "score": score,
            "route": routes,
            "rows": [16, 16, int(16 * share), 4],
            "base_rows": 16,
            "visual_macs_ratio": share,
            "prefill_flops": 2e9,
        }
        for number, score in enumerate(scores)
    ]
    if metric:
        rows = [{**row, "metric": metric} for row in rows]
    times = {"time/prefill_ms": 4 * share + 0.1 * seed, "time/train_s": 9.0}
    write_json(folder / "metrics.json", accuracies(rows) | cost_metrics(rows) | times)
    write_rows(folder / "rows.jsonl", rows)
    steps = (1, 2, 3)
    write_rows(
        folder / "curves.jsonl",
        [{"step": step, "loss/language": 2.0 / step + seed} for step in steps],
    )
    config = {
        "seed": seed,
        "paths": {"output_root": str(folder.parent), "run_dir": str(folder)},
        "router": {"name": router, "keep": keep},
        "data": {"root": "data", "seed": seed} if data is None else data,
        "callbacks": {"checkpoint": {"dirpath": f"{folder}/checkpoints"}},
        "logger": {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if typed is None:
        budget = () if keep is None else (f"router.keep={keep}",)
        typed = (f"router={router}", *budget, f"seed={seed}", f"paths.output_root={folder.parent}")
    set_status(folder, "finished", overrides=list(typed))
    words = [f"{prompt} 0", "answer: a (right: a)", "route in words"]
    owners = [np.arange(4).reshape(2, 2), np.zeros((2, 2), dtype=int)]
    pixels = np.full((8, 8, 3), 120, dtype=np.uint8)
    draw_overlay(pixels, owners, words, folder / "figures" / "overlays" / "held_out-00.png")
    return folder


def set_status(folder: Path, status: str, **fields: object) -> None:
    """Write a run's status.json."""
    known = {"status": status, "error": None, "heartbeat": time.time(), "host": "here", "pid": 1}
    (folder / "status.json").write_text(json.dumps(known | fields))


def write_sweep(root: Path) -> Path:
    """router=none, static and dpe, the latter at two budgets; two seeds each."""
    for seed in (0, 1):
        write_run(root / f"none-{seed}", seed=seed)
        static = {"router": "static", "scores": (1.0, 0.0, 0.0, 0.0), "share": 0.4, "keep": 0.4}
        write_run(root / f"static-{seed}", seed=seed, **static)
        for keep in (0.5, 0.8):
            write_run(root / f"dpe-{keep}-{seed}", "dpe", share=keep, seed=seed, keep=keep)
    return root
