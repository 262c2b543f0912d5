"""Evaluate a trained model on held-out questions.

    python -m dpn.eval run=outputs/main/default-0123abcd
    python -m dpn.eval run=MODEL_FOLDER data=mosaic

Results go to `eval/<slug>` in the run folder, or in `paths.output_root` for a model folder.
"""

from pathlib import Path

from omegaconf import OmegaConf

from dpn import build, inference, preflight
from dpn.config import Request
from dpn.files import write_json, write_rows
from dpn.launch import front_door
from dpn.reports.page import print_tables, write_report
from dpn.run_folder import RunFolder
from dpn.run_path import slug


@front_door("eval", preflight.check_evaluation)
def main(request: Request) -> None:
    """Command line of `python -m dpn.eval`."""
    evaluate(request)


def evaluate(request: Request) -> Path:
    """Answer held-out questions, of the run's data unless told otherwise; returns the folder."""
    preflight.check_evaluation(request)
    folder = RunFolder.of(request, _results_path(request))
    if folder.finished:
        print(f"Finished before; remove {folder.path} to evaluate again.")
    else:
        with folder:
            _run(request, folder)
    print_tables(folder.path)
    return folder.path


def _run(request: Request, folder: RunFolder) -> None:
    config, run = request.config, Path(request.config.run)
    model, processor = inference.load(run, config.device)
    trained = OmegaConf.create({"data": None, "model": {"generation": {"max_new_tokens": 128}}})
    if (run / "config.yaml").exists():
        trained.merge_with(OmegaConf.load(run / "config.yaml"))
    source = build.source(config.get("data") or trained.data)
    source.processor = processor
    source.prepare_data()
    limit = config.max_new_tokens or trained.model.generation.max_new_tokens
    metrics, rows = inference.evaluate(model, processor, source, limit)
    write_rows(folder.path / "rows.jsonl", rows)
    write_json(folder.path / "metrics.json", metrics)
    write_report(folder.path)


def _results_path(request: Request) -> Path:
    run = Path(request.config.run)
    root = run if (run / "config.yaml").exists() else Path(request.config.paths.output_root)
    others = [o for o in request.overrides if not o.startswith("run=")]
    return root / "eval" / slug(others, request.config)


if __name__ == "__main__":
    main()
