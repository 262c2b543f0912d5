"""Times of two ways to do one thing, in turn in one process: only their ratio is worth telling."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch


@dataclass(frozen=True)
class Ratio:
    """Time of a candidate against a baseline.

    Attributes:
        ratio: median over pairs.
        low: lower end of the 95 % interval of that median (bootstrap over pairs).
        high: upper end.
        candidate_ms: median time of the candidate.
        baseline_ms: median time of the baseline.
        pairs: how many were measured.
    """

    ratio: float
    low: float
    high: float
    candidate_ms: float
    baseline_ms: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compare(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    pairs: int = 20,
    warmup: int = 3,
) -> Ratio:
    """Time both in pairs, first one then the other first.

    Args:
        candidate: what is judged.
        baseline: what it is judged against.
        pairs: measured pairs.
        warmup: unmeasured pairs before them.
    """
    times = []
    for number in range(-warmup, pairs):
        order = (candidate, baseline) if number % 2 else (baseline, candidate)
        took = {call: _seconds(call) for call in order}
        if number >= 0:
            times.append((took[candidate], took[baseline]))
    ratios = np.array([a / b for a, b in times])
    draws = np.random.default_rng(0).choice(ratios, (2000, pairs))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Ratio(
        float(np.median(ratios)),
        float(low),
        float(high),
        1e3 * median(a for a, _ in times),
        1e3 * median(b for _, b in times),
        pairs,
    )


def _seconds(call: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
