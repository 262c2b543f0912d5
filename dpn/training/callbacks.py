"""Callbacks around the training steps: progress, clock, curves, seeds, stopping, guards."""

import logging
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from dpn.common import seeded
from dpn.common.files import add_row, json_lines, write_rows
from dpn.common.progress import Bar
from dpn.common.ranges import AtLeast1
from dpn.runs.folder import RunError
from dpn.runs.signals import Interrupted, StopRequest
from dpn.training.resume import AtStepEnd, Checkpoints

log = logging.getLogger(__name__)
progress_log = logging.getLogger("dpn.common.progress")
"""Logger of progress lines, which are not printed on a terminal with a bar."""


class Progress(ProgressBar):
    """A bar over the run's steps on a terminal, plain lines in the log.

    Args:
        every_n_steps: Steps between two lines.
    """

    def __init__(self, every_n_steps: AtLeast1 = 25) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self._enabled = True
        self._bar: Bar | None = None
        self._started = (0, 0.0)

    def disable(self) -> None:
        """Show nothing; Lightning calls this on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar if there is a terminal."""
        self._started = (trainer.global_step, time.perf_counter())
        self._bar = Bar("training", trainer.max_steps, trainer.global_step, drawn=self._enabled)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, and log a line every `every_n_steps` steps."""
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if not self._enabled or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        line = self._line(trainer) if due else None
        if line is not None:
            progress_log.info("step %d/%d  %s", step, trainer.max_steps, line)
        if self._bar is not None:
            self._bar.move(step, line)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation loss."""
        if self._enabled and not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            log.info("step %d/%d  val/loss %.4f", trainer.global_step, trainer.max_steps, loss)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, trainer: Trainer) -> str:
        first, since = self._started
        seconds = (time.perf_counter() - since) / max(1, trainer.global_step - first)
        left = seconds * (trainer.max_steps - trainer.global_step)
        names = {"loss/language": "loss", "cost/visual_macs_ratio": "visual MACs"}
        shown = {names[k]: float(v) for k, v in trainer.callback_metrics.items() if k in names}
        values = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        return f"{values}  {1e3 * seconds:.0f} ms/step  {left:.0f} s left"


class Clock(Callback):
    """Measures training time over all resumptions; its numbers are saved with the checkpoints."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since: float | None = None
        self._step_began = 0.0
        self._steps_ms: deque[float] = deque(maxlen=1000)

    @property
    def train_s(self) -> float:
        """Seconds of training, with validation and without start-up."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._before_s + running

    @property
    def step_ms(self) -> float:
        """Median milliseconds of a training step, without data loading."""
        return statistics.median(self._steps_ms) if self._steps_ms else float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_s, self._since = self.train_s, None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the start of a step, at the first batch of its accumulation window."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._steps_ms.append(1e3 * (time.perf_counter() - self._step_began))
            pl_module.log("time/step_ms", self._steps_ms[-1])

    def state_dict(self) -> dict[str, Any]:
        return {"train_s": self.train_s, "steps_ms": list(self._steps_ms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before_s = state_dict["train_s"]
        self._steps_ms.extend(state_dict["steps_ms"])


class Curves(Callback):
    """Writes logged values as JSON lines, whichever loggers are chosen.

    A resumed run continues after the line of its checkpoint's step; later lines are removed.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove lines written after the checkpoint; the last one may be incomplete."""
        if trainer.is_global_zero and self.path.exists():
            write_rows(self.path, self._until(trainer.global_step))

    def _until(self, step: int) -> Iterator[dict[str, Any]]:
        """The complete lines of the file up to a step."""
        for _, row in json_lines(self.path):
            known = row.get("step") if isinstance(row, dict) else None
            if isinstance(known, int) and known <= step:
                yield row

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a line after a step whose values were logged."""
        window_ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if window_ends and trainer.global_step % every == 0:
            self._add(trainer, validation=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a line with the validation metrics."""
        if not trainer.sanity_checking:
            self._add(trainer, validation=True)

    def _add(self, trainer: Trainer, validation: bool) -> None:
        if trainer.is_global_zero:
            values = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/") == validation
            }
            add_row(self.path, {"step": trainer.global_step, **values})


class StepSeed(Callback):
    """Makes torch's random numbers a function of seed, process and step.

    A resumed run therefore draws the same numbers as an uninterrupted one, without a saved
    generator state.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generators."""
        place = batch_idx % trainer.accumulate_grad_batches
        words = (self.seed, trainer.global_rank, trainer.global_step, place)
        torch.manual_seed(seeded.seed(*words))


class StopAfterStep(AtStepEnd):
    """Stops a run after its current step, with a checkpoint, once a signal asked for it."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals wait for the end of a step."""
        self.stop.patient = True
        self.stop.install()  # Lightning's own handler of SIGTERM saves nothing

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals act at once."""
        self.stop.patient = False

    def at_step_end(self, trainer: Trainer) -> None:
        """Stop all processes if one of them got a signal."""
        asked = trainer.strategy.reduce_boolean_decision(self.stop.signal is not None, all=False)
        if asked:
            if isinstance(trainer.checkpoint_callback, Checkpoints):
                trainer.checkpoint_callback.save_now(trainer)
            raise Interrupted(self.stop.signal or "another process")


class Diverged(RunError):
    """The loss became NaN or infinite."""


class DivergenceGuard(Callback):
    """Stops a run whose loss became NaN or infinite, before such weights are saved.

    Args:
        every_n_steps: Steps between two checks; each waits for the device.
    """

    def __init__(self, every_n_steps: AtLeast1 = 10) -> None:
        self.every_n_steps = every_n_steps
        self._bad: torch.Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note on the device whether the loss is finite; read that every `every_n_steps` steps."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad
        if trainer.global_step % self.every_n_steps == 0:
            self._raise_if_bad(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights after the loss diverged."""
        self._raise_if_bad(trainer)

    def _raise_if_bad(self, trainer: Trainer) -> None:
        if self._bad is not None and bool(self._bad):
            raise Diverged(
                f"The loss is not finite at step {trainer.global_step}; lower optim.lr, lengthen"
                " optim.warmup or set trainer.gradient_clip_val. Earlier checkpoints are fine."
            )
