"""How sure numbers of several seeds and questions are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t as student

RESAMPLES = 10_000
BLOCK = 10**6
"""Values that are drawn at a time, to bound the memory."""


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its 95 % interval.

    Attributes:
        mean: positive if the candidate is better.
        low: end of the interval.
        high: its other end.
        seeds: pairs of runs.
        questions: that all of them were asked.
    """

    mean: float
    low: float
    high: float
    seeds: int
    questions: int

    @property
    def verdict(self) -> str:
        """What may be claimed: `better` or `worse` only if the interval excludes 0."""
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"


def paired_difference(candidate: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Difference:
    """How much better a candidate answers than a baseline, over other questions and other seeds.

    Questions and seeds are bootstrapped, each by itself, and their variances added, which counts
    the noise of single answers twice: with few seeds the interval is too wide rather than too
    narrow. Its half width is the bootstrap's standard error times Student's t, with the degrees of
    freedom of Satterthwaite (1946): percentiles of two or three seeds would be far too narrow
    (Hesterberg, arXiv 1411.5279). One seed tells nothing of others, then the interval is over
    questions alone; one answer tells nothing at all.

    Args:
        candidate: `[S, Q]` scores, a line for each seed.
        baseline: `[S, Q]` of the same seeds and questions.
        seed: of the bootstrap.

    Raises:
        ValueError: if the shapes differ or there is no score.
    """
    if candidate.shape != baseline.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(
            f"Paired scores need the same shape [seeds, questions], got {candidate.shape} and"
            f" {baseline.shape}."
        )
    difference = candidate - baseline
    mean, rng = float(difference.mean()), np.random.default_rng(seed)
    units = [difference.mean(axis) for axis in (0, 1)]  # of each question, of each seed
    variances = np.array([_variance_of_mean(unit, rng) for unit in units])
    half = 0.0 if difference.size > 1 else math.inf
    if variance := variances.sum():
        parts = zip(variances, units, strict=True)
        freedom = variance**2 / sum(v**2 / (len(unit) - 1) for v, unit in parts if v)
        half = float(student.ppf(0.975, freedom) * np.sqrt(variance))
    return Difference(mean, mean - half, mean + half, *difference.shape)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and standard deviation over seeds, in words."""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def _variance_of_mean(values: np.ndarray, rng: np.random.Generator) -> float:
    """By the bootstrap; one value less is drawn than there are, which makes it unbiased."""
    drawn = len(values) - 1
    if not drawn:
        return 0.0
    block = min(RESAMPLES, max(1, BLOCK // drawn))
    blocks = -(-RESAMPLES // block)
    means = [rng.choice(values, (block, drawn)).mean(axis=1) for _ in range(blocks)]
    return float(np.var(means))
