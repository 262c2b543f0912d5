"""Learning rate schedules."""

import math
from dataclasses import dataclass
from typing import Literal

from dpn.common.ranges import NonNegative, Share


@dataclass
class Schedule:
    """Learning rates: what section `optim` holds apart from the optimizer's own arguments.

    Attributes:
        gate_lr: Learning rate of the router; None: the optimizer's.
        projector_lr: Learning rate of the projector; None: the optimizer's.
        schedule: Course of the learning rates after the warm-up: half a cosine, constant, or
            constant with a linear decay at the end (`wsd`).
        warmup: Share of all steps in which the rates rise from zero.
        final_lr: Share of the rates that is left at the end.
        decay: Share of all steps that the decay of `wsd` takes.
    """

    gate_lr: NonNegative | None = None
    projector_lr: NonNegative | None = None
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup: Share = 0.05
    final_lr: Share = 0.0
    decay: Share = 0.2


SCHEDULE_KEYS = tuple(Schedule.__dataclass_fields__)
#: Fields that a schedule does not use.
IGNORED = {"cosine": ("decay",), "constant": ("decay", "final_lr")}


def learning_rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor of every learning rate at a step out of all steps."""
    warmup = schedule.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.schedule == "constant":
        return 1.0
    start = warmup if schedule.schedule == "cosine" else max(warmup, (1 - schedule.decay) * steps)
    done = min(1.0, max(0.0, (step - start) / max(1.0, steps - start)))
    left = (1 + math.cos(math.pi * done)) / 2 if schedule.schedule == "cosine" else 1 - done
    return schedule.final_lr + (1 - schedule.final_lr) * left
