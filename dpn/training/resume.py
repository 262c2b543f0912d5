"""Checkpoints to resume from: when they are written, whether they are complete, which is used."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from dpn.common.files import atomic_path
from dpn.training._lightning import accumulates, needs_no_checkpoint, save_checkpoint, validates
from dpn.training.strategies import SIZES

log = logging.getLogger(__name__)


def step_ends(trainer: Trainer, validated: bool) -> bool:
    """Whether an optimizer step ends after this batch or, if it is validated, this validation.

    Lightning never validates a step that it resumes from, so a run must neither be saved nor
    stopped between a step and its validation.
    """
    if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return False
    if accumulates(trainer):
        return False
    if validated or trainer.fit_loop.epoch_loop.val_loop.skip:  # nothing is held out
        return True
    return not validates(trainer)


class AtStepEnd(Callback):
    """A callback that acts once at the end of each optimizer step, see `step_ends`."""

    def at_step_end(self, trainer: Trainer) -> None:
        """Act; the step and its validation, if it has one, are over."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act if the step ends with this batch."""
        if step_ends(trainer, validated=False):
            self.at_step_end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act if the step ends with this validation."""
        if step_ends(trainer, validated=True):
            self.at_step_end(trainer)


class Checkpoints(AtStepEnd, ModelCheckpoint):
    """Keeps the newest checkpoints, each written completely or not at all.

    Values that loggers have buffered are written first, so nothing before a checkpoint is lost.

    Args:
        dirpath: Folder of the checkpoints.
        every_n_train_steps: Optimizer steps between two checkpoints; the last step has one too.
        keep: Number of checkpoints on disk; the older ones are used if the newest is damaged.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int = 100, keep: int = 2) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="step-{step:07d}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            every_n_train_steps=every_n_train_steps,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_train_steps

    def save_now(self, trainer: Trainer) -> None:
        """Write a checkpoint of this step unless there is one."""
        if not needs_no_checkpoint(self, trainer):
            for logger in trainer.loggers:
                logger.save()
            save_checkpoint(self, trainer)

    def at_step_end(self, trainer: Trainer) -> None:
        """Write a checkpoint if one is due; ModelCheckpoint would wait for the epoch's end."""
        if trainer.global_step % self.every_n_steps == 0:
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint, so that an interrupted evaluation need not train again."""
        self.save_now(trainer)


class CompleteCheckpointIO(TorchCheckpointIO):
    """Writes beside the file and renames, so a full disk damages no earlier file; reads data only.

    Lightning's own class goes through the temporary folder, from where a rename may be a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; the error for a full disk names the file."""
        try:
            with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"Checkpoint {path} could not be written ({error}); earlier ones are untouched."
                " Make room and run the same command again: it resumes from the last one."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values; code is never unpickled."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        damaged = _folder_damage(path) if path.is_dir() else _file_damage(path)
        if damaged is None:
            return path
        log.warning("Checkpoint %s is damaged (%s); using the one before it.", path, damaged)
    return None


def _file_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if it is complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)


def _folder_damage(path: Path) -> str | None:
    """What is wrong with a sharded checkpoint, whose file sizes are recorded in it."""
    try:
        sizes = json.loads((path / SIZES).read_text())
        wrong = [n for n, size in sizes.items() if (path / n).stat().st_size != size]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{wrong[0]} is cut short" if wrong else None
