"""Train, evaluate and report.

    python -m dpn.train                                   # minutes on a laptop CPU
    python -m dpn.train router=none trainer=gpu
    python -m dpn.train -m router=static,dpe router.keep=0.5,0.7

The same command again resumes, or says that the run is finished.
"""

import logging
from pathlib import Path

from dpn import build, inference, plan, preflight
from dpn.calibration import calibrate
from dpn.callbacks import Clock
from dpn.config import Request
from dpn.files import write_json, write_rows
from dpn.launch import front_door, is_first_process
from dpn.reports.page import print_tables, write_report
from dpn.resume import latest_checkpoint
from dpn.run_folder import RunFolder

log = logging.getLogger(__name__)


@front_door("train", preflight.check)
def main(request: Request) -> None:
    """Command line of `python -m dpn.train`."""
    train(request)


def train(request: Request) -> Path:
    """Do all a run needs and return its folder."""
    preflight.check(request)
    folder = RunFolder.of(request, writer=is_first_process())
    if folder.finished:
        print(f"Finished before; remove {folder.path} to run it again.")
    else:
        with folder:
            _run(request, folder)
    if folder.writer:
        print_tables(folder.path)
    return folder.path


def _run(request: Request, folder: RunFolder) -> None:
    config = request.config
    if folder.writer and (warning := plan.warning(config)):
        log.warning(warning)
    source = build.source(config.data)
    processor = source.processor = build.processor(config, source)
    model = build.model(config, processor)

    clock = Clock()
    trainer = build.trainer(config, folder, clock)
    checkpoint = latest_checkpoint(folder.path / "checkpoints")
    trainer.fit(build.module(config, model), source, ckpt_path=checkpoint)

    model = build.trained(config, model, processor, folder, trainer.strategy)
    model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    if model.router.calibrated and model.router.keep is not None:
        calibrate(model, inference.training_prompts(source, model.device))
    limit = config.model.generation.max_new_tokens
    metrics, rows = inference.evaluate(model, processor, source, limit)
    metrics |= {"time/train_s": clock.train_s, "time/step_ms": clock.step_ms}
    if folder.writer:
        inference.save(model, processor, folder.path / "model")
        write_rows(folder.path / "rows.jsonl", rows)
        write_json(folder.path / "metrics.json", metrics)
        write_report(folder.path)


if __name__ == "__main__":
    main()
