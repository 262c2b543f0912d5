"""What this package needs of Lightning that Lightning keeps private, each in one place.

A test checks that every name exists in the installed version.
"""

from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

METADATA_FILE = _METADATA_FILENAME
"""File of a sharded checkpoint with all that is not a tensor; `FSDP2.load_checkpoint` reads it."""


def logs_this_step(trainer: Trainer) -> bool:
    """Whether values logged in this step are kept; for other steps they are not computed."""
    return trainer._logger_connector.should_update_logs


def accumulates(trainer: Trainer) -> bool:
    """Whether the optimizer has yet to step for this batch; an epoch's last window may be short,
    which only the loop knows.
    """
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates(trainer: Trainer) -> bool:
    """Whether a validation follows this batch; several settings of the trainer decide that."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def save_checkpoint(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Save this step and remove the oldest checkpoint; the public hooks wait for an epoch's end."""
    callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))


def needs_no_checkpoint(callback: ModelCheckpoint, trainer: Trainer) -> bool:
    """Whether this step is saved already, or is one that Lightning never saves."""
    return callback._should_skip_saving_checkpoint(trainer)


def only_data_parallel(strategy: ModelParallelStrategy) -> None:
    """Give a strategy one mesh axis over all processes; its constructor does not know how many."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def set_timeout(strategy: Strategy, timeout: timedelta) -> None:
    """Set how long the processes of a strategy wait for each other, before they are joined."""
    if hasattr(strategy, "_timeout"):  # a strategy of several processes
        strategy._timeout = timeout


def wandb_arguments(logger: WandbLogger) -> dict[str, Any]:
    """What a logger will give `wandb.init`; some of it is known only after its constructor ran."""
    return logger._wandb_init


def wandb_run(logger: WandbLogger) -> Any | None:
    """The run of a logger; None before it has begun, while `logger.experiment` would begin one."""
    return logger._experiment
