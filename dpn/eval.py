"""Evaluate a trained model on held-out questions and on benchmarks.

    python -m dpn.eval run=outputs/main/default-0123abcd
    python -m dpn.eval run=MODEL_FOLDER suite=paper data_root=playground/data/eval
    torchrun --nproc-per-node 8 -m dpn.eval run=MODEL_FOLDER benchmarks=[pope,gqa]

Results are written to `eval/<slug>` in the run folder, or in `paths.output_root` for a model
folder. Running the same command again continues where it stopped, includes benchmarks whose files
were missing before, and scores files that came back from a judge.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dpn import benchmarks, inference
from dpn.cli.door import front_door
from dpn.common.distributed import is_first_process, joined_processes
from dpn.common.files import write_json, write_rows
from dpn.config import build, preflight
from dpn.data.batch import DataError
from dpn.inference import Decoding
from dpn.inference.evaluation import evaluate_benchmark, evaluate_held_out
from dpn.metrics import cost_metrics
from dpn.metrics.answers import Row
from dpn.metrics.speed import answer_speed, peak_memory_gib
from dpn.reports.page import print_tables, write_report
from dpn.runs.folder import RunError, RunFolder
from dpn.runs.path import slug
from dpn.runs.request import HELD_OUT, Request, is_run

log = logging.getLogger(__name__)


@front_door("eval", preflight.check_evaluation)
def main(request: Request) -> None:
    """Command line of `python -m dpn.eval`."""
    evaluate(request)


def evaluate(request: Request) -> Path:
    """Answer all open questions, score the answers and return the result folder."""
    preflight.check_evaluation(request)
    folder = RunFolder.of(request, _results_path(request), writer=is_first_process())
    if folder.finished and not any(map(folder.status.get, ("missing", "unscored"))):
        print(f"Already finished; remove {folder.path} to evaluate again.")
    else:
        with joined_processes(), folder:
            _run(request.config, folder)
    if folder.writer:
        write_report(folder.path, request.config.against)
        print_tables(folder.path)
    return folder.path


def _run(config: DictConfig, folder: RunFolder) -> None:
    torch.manual_seed(config.seed)
    model, processor = inference.load(Path(config.run), config.device)
    metrics: dict[str, float] = {}
    rows: list[Row] = []
    missing: dict[str, list[str]] = {}
    problems: list[str] = []
    for name in config.benchmarks:
        if name != HELD_OUT and (files := _benchmark(config, name).missing()):
            missing[name] = [f"{Path(config.data_root) / f.path}: {f.where}" for f in files]
            continue
        examine = _held_out if name == HELD_OUT else _official
        try:
            found, answered = examine(config, folder, name, model, processor)
        except DataError as error:
            problems.append(str(error))
            log.warning("%s", error)
        else:
            metrics |= found
            rows += answered
    for name, lines in missing.items():
        log.warning("%s was skipped because files are missing:\n  %s", name, "\n  ".join(lines))
    if missing and not rows and not problems:
        raise RunError("Nothing could be asked: the files of all benchmarks are missing.")
    metrics |= {**cost_metrics(rows), **answer_speed(rows), "memory/peak_gib": peak_memory_gib()}
    waiting = [name for name in config.benchmarks if name not in missing and name != HELD_OUT]
    waiting = [n for n in waiting if f"{n}/{benchmarks.resolve(n).headline}" not in metrics]
    folder.update(missing=missing, unscored=waiting)
    if folder.writer:
        write_rows(folder.path / "rows.jsonl", rows)
        write_json(folder.path / "metrics.json", metrics)
    if problems:
        raise RunError(" ".join(problems))


def _benchmark(config: DictConfig, name: str) -> benchmarks.Benchmark:
    return benchmarks.build(name, root=Path(config.data_root), **(config.settings.get(name) or {}))


def _official(
    config: DictConfig, folder: RunFolder, name: str, model: Any, processor: Any
) -> tuple[dict[str, float], list[Row]]:
    """Return metrics and rows of a benchmark."""
    return evaluate_benchmark(
        model,
        processor,
        _benchmark(config, name),
        folder.path,
        **_asking(config),
    )


def _held_out(
    config: DictConfig, folder: RunFolder, name: str, model: Any, processor: Any
) -> tuple[dict[str, float], list[Row]]:
    """Return metrics and rows of held-out questions, from `data` or else the run's data."""
    run = Path(config.run)
    trained = OmegaConf.create({"data": None, "model": {"generation": {"max_new_tokens": 128}}})
    if is_run(run):
        trained.merge_with(OmegaConf.load(run / "config.yaml"))
    source = build.data_module(config.get("data") or trained.data)
    source.processor = processor
    source.prepare_data()
    asking = _asking(config)
    asking["max_new_tokens"] = asking["max_new_tokens"] or trained.model.generation.max_new_tokens
    return evaluate_held_out(model, processor, source, folder=folder.path, **asking)


def _asking(config: DictConfig) -> dict[str, Any]:
    """Return the arguments shared by all evaluations."""
    decoding = Decoding(**OmegaConf.to_container(config.generation))  # type: ignore[arg-type]
    return {
        "model_files": inference.model_folder(Path(config.run)),
        "batch_size": config.batch_size,
        "limit": config.limit,
        "workers": config.num_workers,
        "overlays": config.overlays,
        "max_new_tokens": config.max_new_tokens,
        **decoding.options,
    }


def _results_path(request: Request) -> Path:
    run = Path(request.config.run)
    root = run if is_run(run) else Path(request.config.paths.output_root)
    others = [o for o in request.overrides if not o.startswith("run=")]
    return root / "eval" / slug(others, request.config)


if __name__ == "__main__":
    main()
