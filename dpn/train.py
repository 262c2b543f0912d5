"""Train a model, evaluate it and write a report.

    python -m dpn.train                                   # minutes on a laptop CPU
    python -m dpn.train router=none trainer=gpu
    python -m dpn.train -m router=static,dpe router.keep=0.5,0.7

Running the same command again resumes the run, or says that it is finished.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dpn import inference, plan
from dpn.cli.door import front_door
from dpn.common.distributed import is_first_process
from dpn.common.files import read_json, write_json, write_rows
from dpn.config import apply, build, preflight
from dpn.inference import evaluation
from dpn.model import DPNForConditionalGeneration
from dpn.reports.page import print_tables, write_report
from dpn.runs import torchrun
from dpn.runs.folder import RunFolder
from dpn.runs.path import run_path
from dpn.runs.request import ConfigError, Request
from dpn.training import dashboards
from dpn.training.calibration import calibrate, needs_calibration
from dpn.training.callbacks import Clock
from dpn.training.resume import latest_checkpoint
from dpn.training.stage import trains

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dpn.data.module import DataModule

log = logging.getLogger(__name__)


@front_door("train", preflight.check, run_path)
def main(request: Request) -> list[float] | None:
    """Command line of `python -m dpn.train`; returns accuracy and visual MACs ratio to sweepers."""
    metrics = read_json(train(request) / "metrics.json")
    return metrics and [metrics["val/accuracy"], metrics["cost/visual_macs_ratio"]]


def train(request: Request) -> Path:
    """Train, evaluate and report, and return the run folder.

    In a sweep, a `keep` that the method cannot reach is recorded as the outcome of the job.
    """
    folder = RunFolder.of(request, writer=is_first_process())
    if folder.finished:
        print(f"Already finished; remove {folder.path} to run it again.")
    elif _possible(request, folder):
        if torchrun.needed(request):
            torchrun.run(request, folder)
        else:
            with folder:
                _run(request, folder)
    if folder.writer and not request.in_sweep:  # a sweep ends with its own table
        print_tables(folder.path)
    return folder.path


def _possible(request: Request, folder: RunFolder) -> bool:
    """Check the config; in a sweep, record problems in the folder of the job."""
    try:
        preflight.check(request)
    except Exception as error:
        unreachable = isinstance(error, ConfigError) and error.unreachable
        if request.in_sweep:
            folder.record("unreachable" if unreachable else "failed", error)
        if not (request.in_sweep and unreachable):
            raise
        print(error)
        return False
    return True


def _run(request: Request, folder: RunFolder) -> None:
    config, learns = request.config.copy(), trains(request.config.stage)
    folder.update(overrides=list(request.overrides))
    if folder.writer and (warning := plan.warning(config)):
        log.warning(warning)
    if not learns and config.init.model is None:
        config.init.model = str(apply.base_run(request))
        folder.update(applied_to=config.init.model)
    source = build.data_module(config.data)
    processor = source.processor = build.processor(config, source)
    model = build.model(config, processor)
    if needs_calibration(model, "projector"):
        source.prepare_data()
        calibrate(model, inference.training_prompts(source, model.device), "projector")

    source.image_rows = model.router.expected_rows()
    clock = Clock()
    trainer = build.trainer(config, folder, clock)
    with dashboards.opened(
        trainer, dashboards.title_of(request, folder.identity, model.router.keep)
    ):
        model = _trained(config, model, source, folder, trainer)
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
            dashboards.show_results(trainer, model, processor, source, metrics, rows)


def _trained(
    config: DictConfig,
    model: DPNForConditionalGeneration,
    source: "DataModule",
    folder: RunFolder,
    trainer: "Trainer",
) -> DPNForConditionalGeneration:
    """Return the model after training and calibration, complete and on the trainer's device."""
    module = build.module(config, model)
    if trains(config.stage):
        checkpoint = latest_checkpoint(folder.path / "checkpoints")
        trainer.fit(module, source, ckpt_path=checkpoint)
    else:  # only sets up the strategy
        trainer.validate(module, source)

    model = build.trained_model(config, model, source.processor, folder, trainer.strategy)
    model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    for part in ("projector", "router"):
        if needs_calibration(model, part):
            calibrate(model, inference.training_prompts(source, model.device), part)
    return model


if __name__ == "__main__":
    main()
