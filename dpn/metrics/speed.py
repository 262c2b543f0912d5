"""Times of two ways to do one thing, in turn in one process: only their ratio is worth telling."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from dpn.metrics.answers import Row


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


def now() -> float:
    """Seconds on a clock, once the GPU is done with what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def answer_speed(rows: Sequence[Row]) -> dict[str, float]:
    """Throughput of one process over answered questions.

    `time/samples_per_s`; `time/prefill_ms`, per sample, vision tower and first token included; and
    `time/new_token_ms`, per token after the first of each answer.
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
    """Most memory that was taken so far: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _seconds(call: Callable[[], object]) -> float:
    start = now()
    call()
    return now() - start
