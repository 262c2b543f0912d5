"""Checkpoints to resume from: when they are written, whether they are complete, which is used."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from dpn.checkpoints.distributed import INDEX, read_index
from dpn.common.errors import FileError
from dpn.common.files import atomic_path, parse_json, read_text, why_unwritten
from dpn.common.ranges import AtLeast1, CountOrAll
from dpn.common.text import shorten
from dpn.training._lightning import (
    METADATA_FILE,
    accumulates,
    needs_no_checkpoint,
    save_checkpoint,
    validates,
)
from dpn.training.strategies import SIZES

log = logging.getLogger(__name__)
_DIRECTORY = 0x10
"""Attribute of a member of a zip archive."""


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

    def __init__(
        self, dirpath: str, every_n_train_steps: AtLeast1 = 100, keep: CountOrAll = 2
    ) -> None:
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
                f"Checkpoint {path} could not be written ({why_unwritten(error)}); earlier ones are"
                " untouched."
                " Make room and run the same command again: it resumes from the last one."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values; code is never unpickled.

        Raises:
            FileError: If the checkpoint is damaged.
        """
        return read_checkpoint(Path(path), map_location or "cpu")


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; damaged ones are skipped with a warning."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            if path.is_dir():
                _check_folder(path)
            else:
                read_checkpoint(path, "cpu", mmap=True)
        except FileError as damage:
            log.warning("%s Using the one before it.", damage)
        else:
            return path
    return None


def read_checkpoint(path: Path, map_location: Any, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint file completely, with a check of every byte.

    Args:
        path: File that `CompleteCheckpointIO` wrote.
        map_location: See `torch.load`.
        mmap: Whether tensors stay in the file, so that testing a checkpoint needs no memory.

    Raises:
        FileError: If it is damaged, whatever kind of error its content causes.
    """
    try:
        _check_archive(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        if not isinstance(checkpoint, dict):
            raise TypeError("it does not hold the state of a run")
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    return checkpoint


def _check_archive(path: Path) -> None:
    """Check what torch does not look at: checksums, and that all members are plain files; of a
    directory it reads nothing, and leaves memory as it was.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        odd = [m for m in archive.infolist() if m.compress_type or m.external_attr & _DIRECTORY]
        if damaged or odd:
            raise ValueError(f"{damaged or odd[0].filename} is not as it was written")


def _check_folder(path: Path) -> None:
    """Check a sharded checkpoint: the sizes of its files, which are recorded in it, and its index.

    Raises:
        FileError: If it is damaged.
    """
    try:
        sizes = parse_json(read_text(path / SIZES))
        wrong = [n for n, size in sizes.items() if (path / n).stat().st_size != size]
        if wrong:
            raise ValueError(f"{wrong[0]} is cut short")
        if (path / METADATA_FILE).exists():
            torch.load(path / METADATA_FILE, map_location="cpu", weights_only=True)
        if (path / INDEX).exists():
            read_index(path)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileError:
    why = shorten(str(error) or type(error).__name__, 200).rstrip(".")
    return FileError(f"Checkpoint {path} is damaged ({why}).")
