"""Train a model, evaluate it and write a report.

    python -m dpn.train                                   # minutes on a laptop CPU
    python -m dpn.train router=none trainer=gpu
    python -m dpn.train -m router=static,dpe router.keep=0.5,0.7

Running the same command again resumes the run, or says that it is finished.
"""

# Functions import what needs torch, so that `--help` and a misspelt name are answered before.

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dpn.cli.door import front_door
from dpn.common.errors import DPNError
from dpn.common.files import atomic_folder, write_json, write_rows
from dpn.common.optional import optional
from dpn.common.processes import is_first_process
from dpn.runs import inputs, torchrun
from dpn.runs.folder import RunError, RunFolder
from dpn.runs.path import run_path
from dpn.runs.request import ConfigError, Request
from dpn.runs.saved import METRICS, ROWS, read_metrics
from dpn.training.stage import trains

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from dpn.data.module import DataModule
    from dpn.model import DPNForConditionalGeneration, DPNProcessor
    from dpn.training.callbacks import Clock

log = logging.getLogger(__name__)
#: Metrics that a sweeper may search for, in the order of `hydra.sweeper.direction`.
OBJECTIVES = ("val/accuracy", "cost/visual_macs_ratio")
#: Metrics of the training itself.
TIMES = ("time/train_s", "time/step_ms")


@front_door("train", run_path)
def main(request: Request) -> list[float] | None:
    """Command line of `python -m dpn.train`; returns accuracy and visual MACs ratio to sweepers.

    Raises:
        RunError: If a sweeper searches for the best of these values, and the run has not both.
    """
    folder = train(request)
    try:
        metrics = read_metrics(folder)
    except FileNotFoundError:
        return None
    found = [metrics.get(name) for name in OBJECTIVES]
    if None not in found:
        return found  # type: ignore[return-value]
    if request.searching:
        raise RunError(
            f"The sweeper searches for the best {' and '.join(OBJECTIVES)}, and {folder} has not"
            " both: its held-out questions need answers that can be scored, and images."
        )
    return None


def train(request: Request) -> Path:
    """Train, evaluate and report, and return the run folder.

    In a sweep, a `keep` that the method cannot reach is recorded as the outcome of the job.
    """
    from dpn.common.distributed import lost_processes_named
    from dpn.reports.page import damaged_results, print_tables

    folder = RunFolder.of(request, writer=is_first_process())
    damage = damaged_results(folder.path) if folder.finished else None
    if folder.finished and not damage:
        print(f"Already finished; remove {folder.path} to run it again.")
        _warn_of_other_data(request, folder)
    elif _possible(request, folder):
        if damage:
            log.warning("%s The trained model is evaluated again.", damage)
        if torchrun.needed(request):
            torchrun.run(request, folder)
        else:
            with folder, lost_processes_named():
                _run(request, folder)
    if folder.writer and not request.in_sweep:  # a sweep ends with its own table
        print_tables(folder.path)
    return folder.path


def _warn_of_other_data(request: Request, folder: RunFolder) -> None:
    """Warn if the data files of a finished run have changed; it needs them no more."""
    from dpn.config import build

    with suppress(OSError, DPNError):
        files = build.input_files(build.data_module(request.config.data))
        for path in inputs.changed(folder.path, files):
            log.warning("%s changed after this run was trained on it.", path)


def _possible(request: Request, folder: RunFolder) -> bool:
    """Check the config; in a sweep, record problems in the folder of the job."""
    from dpn.config import preflight

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
    from dpn import inference, plan
    from dpn.config import apply, build
    from dpn.inference import evaluation
    from dpn.reports.page import write_report
    from dpn.training import dashboards
    from dpn.training.calibration import calibrate, needs_calibration
    from dpn.training.callbacks import Clock

    config, learns = request.config.copy(), trains(request.config.stage)
    folder.update(overrides=list(request.overrides))
    if folder.writer and (warning := plan.warning(config)):
        log.warning(warning)
    if not learns and config.init.model is None:
        config.init.model = str(apply.base_run(request))
        folder.update(applied_to=config.init.model)
    source = build.data_module(config.data)
    processor = source.processor = _processor(config, source, folder)
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
        model, facts = _trained(config, model, source, folder, trainer, clock)
        limit = config.model.generation.max_new_tokens
        metrics, rows = evaluation.evaluate_held_out(model, processor, source, limit)
        if learns:
            metrics |= {name: facts[name] for name in TIMES}
        if folder.writer:
            write_rows(folder.path / ROWS, rows)
            write_json(folder.path / METRICS, metrics)
            failed: list[str] = []
            if config.overlays:
                with optional("The pictures of what layers kept", failed):
                    evaluation.draw_held_out(
                        model, processor, source, rows, config.overlays, folder.path
                    )
            folder.update(not_made=failed)
            write_report(folder.path)
            with optional("The results on the dashboards", failed):
                step = facts["step"]
                dashboards.show_results(trainer, model, processor, source, metrics, rows, step)


def _processor(config: DictConfig, source: "DataModule", folder: RunFolder) -> "DPNProcessor":
    """Return the processor; a resumed run has the tokenizer and the data that it began with.

    Raises:
        InputsChanged: If the data files or the tokenizer of a resumed run have changed.
    """
    from dpn.config import build

    source.prepare_data()
    files = build.input_files(source, config)
    begun = "trained" in folder.status or any((folder.path / "checkpoints").glob("step-*.ckpt"))
    if begun:
        notes = folder.path / inputs.INPUTS
        fix = f"remove {folder.path} to start again, or remove {notes} to continue all the same"
        inputs.refuse_changed(folder.path, files, fix)
    kept = folder.path / "tokenizer"
    processor = build.processor(config, source, kept if begun else None)
    if folder.writer:
        if not begun or not (folder.path / inputs.INPUTS).exists():
            inputs.note(folder.path, files)
        if build.trains_tokenizer(config) and not (begun and kept.is_dir()):
            with atomic_folder(kept) as fresh:
                processor.tokenizer.save_pretrained(fresh)
    return processor


def _trained(
    config: DictConfig,
    model: "DPNForConditionalGeneration",
    source: "DataModule",
    folder: RunFolder,
    trainer: "Trainer",
    clock: "Clock",
) -> tuple["DPNForConditionalGeneration", dict[str, Any]]:
    """Train and calibrate a model and save it to the run folder, unless that was done before.

    Returns:
        The model, complete and on the trainer's device; and step and times of the training.
    """
    from dpn import inference
    from dpn.config import build
    from dpn.training.calibration import calibrate, needs_calibration
    from dpn.training.resume import latest_checkpoint

    module, learns = build.module(config, model), trains(config.stage)
    facts: dict[str, Any] = folder.status.get("trained") or {}
    known = all(isinstance(facts.get(name), int | float) for name in ("step", *TIMES))
    ready = _saved_model(folder) if known else None
    if learns and ready is None:
        checkpoint = latest_checkpoint(folder.path / "checkpoints")
        trainer.fit(module, source, ckpt_path=checkpoint)
        facts = {"step": trainer.global_step}
        facts |= dict(zip(TIMES, (clock.train_s, clock.step_ms), strict=True))
    else:  # only sets up the strategy
        trainer.limit_val_batches = 0
        trainer.validate(module, source)
    if ready is not None:
        ready.attention = model.attention
        return ready.to(trainer.strategy.root_device), facts

    model = build.trained_model(config, model, source.processor, folder, trainer.strategy)
    model.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    for part in ("projector", "router"):
        if needs_calibration(model, part):
            calibrate(model, inference.training_prompts(source, model.device), part)
    trainer.strategy.barrier()  # others may still read a sharded model's files
    if learns and folder.writer:
        inference.save(model, source.processor, folder.path / "model")
        folder.update(trained=facts)
    return model, facts if learns else {"step": 0}


def _saved_model(folder: RunFolder) -> "DPNForConditionalGeneration | None":
    """The trained model in a run folder; None if it is not there or damaged."""
    from dpn import inference

    if not (folder.path / "model").is_dir():
        return None
    try:
        return inference.load(folder.path, "cpu")[0]
    except (DPNError, OSError) as error:
        log.warning("%s The run continues from its last checkpoint.", error)
        return None


if __name__ == "__main__":
    main()
