"""Train, evaluate and report.

    python -m dpn.train                                   # minutes on a laptop CPU
    python -m dpn.train router=none trainer=gpu
    python -m dpn.train -m router=static,dpe router.keep=0.5,0.7

The same command again resumes, or says that the run is finished.
"""

import logging
from pathlib import Path

from dpn import apply, build, evaluation, inference, plan, preflight
from dpn.calibration import calibrate, needs_calibration
from dpn.callbacks import Clock
from dpn.config import ConfigError, Request
from dpn.distributed import is_first_process
from dpn.files import write_json, write_rows
from dpn.launch import front_door
from dpn.reports.page import print_tables, write_report
from dpn.resume import latest_checkpoint
from dpn.run_folder import RunFolder
from dpn.sections import trains

log = logging.getLogger(__name__)


@front_door("train", preflight.check)
def main(request: Request) -> None:
    """Command line of `python -m dpn.train`."""
    train(request)


def train(request: Request) -> Path:
    """Do all a run needs and return its folder; in a sweep a share that a method can not spend is
    recorded as the outcome of the job.
    """
    try:
        preflight.check(request)
    except ConfigError as error:
        if not (error.unreachable and request.in_sweep):
            raise
        folder = RunFolder.of(request, writer=is_first_process())
        folder.record("unreachable", str(error))
        print(error)
        return folder.path
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
    config, learns = request.config.copy(), trains(request.config.stage)
    folder.update(overrides=list(request.overrides))
    if folder.writer and (warning := plan.warning(config)):
        log.warning(warning)
    if not learns and config.init.model is None:
        config.init.model = str(apply.base_run(request))
        folder.update(applied_to=config.init.model)
    source = build.source(config.data)
    processor = source.processor = build.processor(config, source)
    model = build.model(config, processor)
    if needs_calibration(model, "projector"):
        source.prepare_data()
        calibrate(model, inference.training_prompts(source, model.device), "projector")

    source.image_rows = model.router.expected_rows()
    clock = Clock()
    trainer = build.trainer(config, folder, clock)
    module = build.module(config, model)
    if learns:
        checkpoint = latest_checkpoint(folder.path / "checkpoints")
        trainer.fit(module, source, ckpt_path=checkpoint)
    else:  # the strategy alone
        trainer.validate(module, source)

    model = build.trained(config, model, processor, folder, trainer.strategy)
    model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    for part in ("projector", "router"):
        if needs_calibration(model, part):
            calibrate(model, inference.training_prompts(source, model.device), part)
    limit = config.model.generation.max_new_tokens
    metrics, rows = evaluation.evaluate_held_out(
        model, processor, source, limit, folder.path, overlays=config.overlays
    )
    if learns:
        metrics |= {"time/train_s": clock.train_s, "time/step_ms": clock.step_ms}
    if folder.writer:
        if learns:
            inference.save(model, processor, folder.path / "model")
        write_rows(folder.path / "rows.jsonl", rows)
        write_json(folder.path / "metrics.json", metrics)
        write_report(folder.path)


if __name__ == "__main__":
    main()
