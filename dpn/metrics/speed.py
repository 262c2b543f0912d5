"""Timing of alternatives that run in turn in one process, so that their ratios can be trusted."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dpn.metrics.answers import Row
from dpn.metrics.memory import GIB


@dataclass(frozen=True)
class Ratio:
    """Time of a candidate divided by the time of a baseline.

    Attributes:
        ratio: Median over pairs.
        low: Lower end of the 95 % interval of that median (bootstrap over pairs).
        high: Upper end of the interval.
        candidate_ms: Median time of the candidate.
        baseline_ms: Median time of the baseline.
        pairs: Number of measured pairs.
    """

    ratio: float
    low: float
    high: float
    candidate_ms: float
    baseline_ms: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


#: Seconds in each round, by timed part and contender.
Times = dict[str, dict[str, np.ndarray]]


def race(
    contenders: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int = 20, warmup: int = 3
) -> Times:
    """Time all contenders in every round, with the order reversed from round to round.

    Args:
        contenders: Functions that do the work once and return the seconds of its parts.
        rounds: Number of measured rounds.
        warmup: Number of unmeasured rounds before them.
    """
    rows = []
    for number in range(-warmup, rounds):
        order = list(contenders)[:: -1 if number % 2 else 1]
        took = {name: contenders[name]() for name in order}
        if number >= 0:
            rows.append(took)
    parts = next(iter(rows[0].values()))
    return {
        part: {name: np.array([row[name][part] for row in rows]) for name in contenders}
        for part in parts
    }


def ratio(candidate: np.ndarray, baseline: np.ndarray) -> Ratio:
    """Compare the seconds of two contenders in the same rounds."""
    ratios = candidate / baseline
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Ratio(
        float(np.median(ratios)),
        float(low),
        float(high),
        1e3 * float(np.median(candidate)),
        1e3 * float(np.median(baseline)),
        len(ratios),
    )


def compare(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    pairs: int = 20,
    warmup: int = 3,
) -> Ratio:
    """Time a candidate and a baseline in pairs, with the order reversed from pair to pair.

    Args:
        candidate: Function to judge.
        baseline: Function to compare with.
        pairs: Number of measured pairs.
        warmup: Number of unmeasured pairs before them.
    """
    calls = {"candidate": lambda: timed(candidate), "baseline": lambda: timed(baseline)}
    return ratio(**race(calls, pairs, warmup)["call"])


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Time a call; a contender for `race`."""
    start = now()
    call()
    return {"call": now() - start}


def now() -> float:
    """Return the clock's seconds after all GPU work has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def answer_speed(rows: Sequence[Row]) -> dict[str, float]:
    """Return the speed of one process on its answered questions.

    The keys are `time/samples_per_s`; `time/prefill_ms`, per sample, with vision tower and first
    token; and `time/new_token_ms`, per token after the first one of each answer.
    """
    if not rows:
        return {}
    whole, prefill = (sum(row[key] for row in rows) for key in ("ms", "prefill_ms"))
    later = sum(row["new_tokens"] - 1 for row in rows)
    return {
        "time/samples_per_s": 1e3 * len(rows) / whole,
        "time/prefill_ms": prefill / len(rows),
        "time/new_token_ms": (whole - prefill) / later if later else float("nan"),
    }


def peak_memory_gib() -> float:
    """Return the peak memory so far: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
