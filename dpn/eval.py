"""Evaluate a trained model on held-out questions and on benchmarks.

    python -m dpn.eval run=outputs/main/default-0123abcd
    python -m dpn.eval run=MODEL_FOLDER suite=paper data_root=playground/data/eval
    torchrun --nproc-per-node 8 -m dpn.eval run=MODEL_FOLDER benchmarks=[pope,gqa]

`router=NAME`, `projector=NAME` and `keep=SHARE` replace the model's own method for this evaluation,
without training; `router.k=3` sets an argument of it.

Results are written to `eval/<slug>` in the run folder, or in `paths.output_root` for a model
folder. Running the same command again continues where it stopped, includes benchmarks whose files
were missing before, and scores files that came back from a judge.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dpn.cli.door import front_door
from dpn.common.files import write_json, write_rows
from dpn.common.optional import optional
from dpn.common.processes import is_first_process
from dpn.runs import inputs
from dpn.runs.folder import RunError, RunFolder
from dpn.runs.path import slug
from dpn.runs.request import HELD_OUT, Request, is_run
from dpn.runs.saved import METRICS, ROWS, read_settings

if TYPE_CHECKING:
    from dpn.benchmarks import Benchmark
    from dpn.data.module import DataModule
    from dpn.metrics.answers import Row

log = logging.getLogger(__name__)
DEFAULT_TOKENS = 128
"""Largest number of tokens in an answer to a held-out question of a model without a run."""


@front_door("eval")
def main(request: Request) -> None:
    """Command line of `python -m dpn.eval`."""
    evaluate(request)


def evaluate(request: Request) -> Path:
    """Answer all open questions, score the answers and return the result folder."""
    from dpn.common.distributed import joined_processes, lost_processes_named
    from dpn.config import preflight
    from dpn.reports.page import damaged_results, print_tables, write_report

    preflight.check_evaluation(request)
    folder = RunFolder.of(request, _results_path(request), writer=is_first_process())
    damage = damaged_results(folder.path) if folder.finished else None
    left = damage or any(map(folder.status.get, ("missing", "unscored")))
    if folder.finished and not left:
        print(f"Already finished; remove {folder.path} to evaluate again.")
    else:
        if damage:
            log.warning("%s It is made again.", damage)
        with joined_processes(request.config.timeout_s), folder, lost_processes_named():
            _run(request.config, folder)
    if folder.writer:
        write_report(folder.path, request.config.against)
        print_tables(folder.path)
    return folder.path


def _run(config: DictConfig, folder: RunFolder) -> None:
    import torch

    from dpn import benchmarks, inference
    from dpn.data.batch import DataError
    from dpn.metrics import cost_metrics
    from dpn.metrics.speed import answer_speed, peak_memory_gib

    torch.manual_seed(config.seed)
    method = {key: _plain(config.get(key)) for key in ("router", "projector", "keep")}
    model, processor = inference.load(Path(config.run), config.device, **method)
    folder.update(method=_method(config) or None)
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
        write_rows(folder.path / ROWS, rows)
        write_json(folder.path / METRICS, metrics)
        failed: list[str] = []
        for name in config.benchmarks if config.overlays else ():
            answered = [row for row in rows if row.get("benchmark", HELD_OUT) == name]
            with optional(f"The pictures of {name}", failed):
                _draw(config, folder, name, model, processor, answered)
        folder.update(not_made=failed)
    if problems:
        raise RunError(" ".join(problems))


def _benchmark(config: DictConfig, name: str) -> "Benchmark":
    from dpn import benchmarks

    return benchmarks.build(name, root=Path(config.data_root), **(config.settings.get(name) or {}))


def _official(
    config: DictConfig, folder: RunFolder, name: str, model: Any, processor: Any
) -> tuple[dict[str, float], list["Row"]]:
    """Return metrics and rows of a benchmark."""
    from dpn.inference.evaluation import evaluate_benchmark

    return evaluate_benchmark(
        model,
        processor,
        _benchmark(config, name),
        folder.path,
        **_asking(config),
    )


def _draw(
    config: DictConfig,
    folder: RunFolder,
    name: str,
    model: Any,
    processor: Any,
    rows: list["Row"],
) -> None:
    """Draw overlay figures of answers to one benchmark."""
    from dpn.inference.evaluation import draw_benchmark, draw_held_out

    if not rows:
        return
    if name == HELD_OUT:
        source, _ = _held_out_data(config, processor)
        draw_held_out(model, processor, source, rows, config.overlays, folder.path)
    else:
        benchmark = _benchmark(config, name)
        draw_benchmark(model, processor, benchmark, rows, config.overlays, folder.path)


def _held_out(
    config: DictConfig, folder: RunFolder, name: str, model: Any, processor: Any
) -> tuple[dict[str, float], list["Row"]]:
    """Return metrics and rows of held-out questions, from `data` or else the run's data."""
    from dpn.inference.evaluation import evaluate_held_out

    source, most = _held_out_data(config, processor)
    asking = _asking(config)
    asking["max_new_tokens"] = asking["max_new_tokens"] or most
    return evaluate_held_out(model, processor, source, folder=folder.path, **asking)


def _held_out_data(config: DictConfig, processor: Any) -> tuple["DataModule", int]:
    """Return the data with the held-out questions, and the largest number of tokens in an answer.

    Raises:
        InputsChanged: If the run's own data files have changed.
    """
    from dpn.config import build

    run, most = Path(config.run), DEFAULT_TOKENS
    node = config.get("data")
    if is_run(run):
        trained = read_settings(run, ["data", "model"])
        most = OmegaConf.select(trained, "model.generation.max_new_tokens", default=most)
        node = node or trained.data
    source = build.data_module(node)
    source.processor = processor
    source.prepare_data()
    if not config.get("data"):
        fix = "or name the data to ask about, e.g. data=llava_json data.train_file=..."
        asked = source.source.split("val")
        files = {k: f for k, f in build.input_files(source).items() if asked and f == asked.file}
        inputs.refuse_changed(run, files, fix)
    return source, most


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _method(config: DictConfig) -> str:
    """Name the method that replaces the model's own; empty if none does."""
    words = []
    for part in ("router", "projector"):
        if section := _plain(config.get(part)):
            rest = [
                f"{part}.{k}={'null' if v is None else v}"
                for k, v in section.items()
                if k != "name"
            ]
            words += [f"{part}={section['name']}", *rest]
    keep = [] if config.get("keep") is None else [f"keep={config.keep}"]
    return " ".join([*words, *keep])


def _asking(config: DictConfig) -> dict[str, Any]:
    """Return the arguments shared by all evaluations."""
    from dpn import inference

    decoding = inference.Decoding(**OmegaConf.to_container(config.generation))  # type: ignore[arg-type]
    return {
        "model_files": inference.model_folder(Path(config.run)),
        "batch_size": config.batch_size,
        "limit": config.limit,
        "workers": config.num_workers,
        "max_new_tokens": config.max_new_tokens,
        "method": _method(config),
        **decoding.options,
    }


def _results_path(request: Request) -> Path:
    run = Path(request.config.run)
    root = run if is_run(run) else Path(request.config.paths.output_root)
    others = [o for o in request.overrides if not o.startswith("run=")]
    return root / "eval" / slug(others, request.config)


if __name__ == "__main__":
    main()
