"""A measured ratio, what it is held against, and the line that keeps it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dpn.metrics.speed import Ratio
from dpn.runs.commit import commit

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A measured ratio.

    Attributes:
        figure: what against what.
        ratio: median.
        low: lower end of its interval.
        high: upper end.
        target: bound, if there is one.
        more: whether the ratio has to be larger than the target, not smaller.
        pairs: measured ones; 0 if it is computed.
    """

    figure: str
    ratio: float
    low: float
    high: float
    target: float | None
    more: bool = False
    pairs: int = 0

    @property
    def met(self) -> bool | None:
        """Whether the interval reaches the target."""
        if self.target is None:
            return None
        return self.high >= self.target if self.more else self.low <= self.target

    @classmethod
    def of(
        cls,
        figure: str,
        ratio: Ratio,
        target: float | None,
        over: float = 1.0,
        faster: bool = False,
    ) -> "Figure":
        """A ratio of times over what it should be; or, with `faster`, the other way round."""
        ends = [end / over for end in (ratio.ratio, ratio.low, ratio.high)]
        if faster:
            ends = [1 / ends[0], 1 / ends[2], 1 / ends[1]]
        return cls(figure, *ends, target, more=faster, pairs=ratio.pairs)


def append(name: str, figure: Figure) -> None:
    """A line of results.jsonl."""
    line = asdict(figure) | {"met": figure.met} | origin(f"run.py {name}")
    with (HERE / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def origin(script: str) -> dict[str, Any]:
    """Where a figure comes from: a command line in this folder, and the code that it ran."""
    return {
        "command": f"python experiments/speed/{script}",
        "commit": commit("experiments/speed/*.py"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
