"""What a run trains, and when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dpn.common.ranges import BelowOne, NonNegative

Part = Literal["vision", "projector", "language", "lm_head", "router"]


@dataclass
class Stage:
    """Section `stage`.

    Attributes:
        freeze: Parts of the model that are not trained.
        dense: Share of all training steps before the router acts, as if it were `router=none`.
        lr: Learning rate that `optim=llava` takes.
        lora: Arguments of `dpn.training.lora.add`; None trains the language model's own weights.
    """

    freeze: list[Part] = field(default_factory=list)
    dense: BelowOne = 0.0
    lr: NonNegative = 2e-5
    lora: dict[str, Any] | None = None


def trains(stage: Mapping[str, Any]) -> bool:
    """Whether a section `stage` changes any weight."""
    return stage["lora"] is not None or not {*get_args(Part)} <= {*stage["freeze"]}
