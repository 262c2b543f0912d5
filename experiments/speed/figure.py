"""A measured ratio with its target, and its line in the results."""

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
        figure: Name of the comparison.
        ratio: Median.
        low: Lower end of its interval.
        high: Upper end of its interval.
        target: Bound, if there is one.
        more: Whether the ratio has to be larger than the target instead of smaller.
        pairs: Number of measured pairs; 0 if the ratio is computed.
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
        """Create a figure from a ratio of times, divided by `over`; inverted with `faster`."""
        ends = [end / over for end in (ratio.ratio, ratio.low, ratio.high)]
        if faster:
            ends = [1 / ends[0], 1 / ends[2], 1 / ends[1]]
        return cls(figure, *ends, target, more=faster, pairs=ratio.pairs)


def append(name: str, figure: Figure) -> None:
    """Append a line to results.jsonl."""
    line = asdict(figure) | {"met": figure.met} | origin(f"run.py {name}")
    with (HERE / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def origin(script: str) -> dict[str, Any]:
    """Return the command and the commit that a figure comes from."""
    return {
        "command": f"python experiments/speed/{script}",
        "commit": commit("experiments/speed/*.py"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
