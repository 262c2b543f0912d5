"""Confidence intervals for results over several seeds and questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t as student

RESAMPLES = 10_000
#: Number of values that are drawn at a time, which bounds the memory.
BLOCK = 10**6


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its 95 % interval.

    Attributes:
        mean: Mean difference, positive if the candidate is better.
        low: Lower end of the interval.
        high: Upper end of the interval.
        seeds: Number of pairs of runs.
        questions: Number of questions that all runs answered.
    """

    mean: float
    low: float
    high: float
    seeds: int
    questions: int

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval excludes 0, else `no difference shown`."""
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "better" if self.mean > 0 else "worse"


def paired_difference(candidate: np.ndarray, baseline: np.ndarray, seed: int = 0) -> Difference:
    """Estimate how much better a candidate answers than a baseline, with an interval that covers
    other questions and other seeds.

    Questions and seeds are bootstrapped separately and their variances are added. This counts the
    noise of single answers twice, so with few seeds the interval is too wide rather than too
    narrow. Its half width is the bootstrap's standard error times Student's t with Satterthwaite's
    (1946) degrees of freedom: percentiles of two or three seeds would be far too narrow
    (Hesterberg, arXiv 1411.5279). With one seed, the interval covers other questions only; with a
    single answer it is infinite.

    Args:
        candidate: Scores `[S, Q]` of S seeds and Q questions.
        baseline: Scores `[S, Q]` of the same seeds and questions.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the shapes differ or there is no score.
    """
    if candidate.shape != baseline.shape or candidate.ndim != 2 or not candidate.size:
        raise ValueError(
            f"Paired scores need the same shape [seeds, questions], got {candidate.shape} and"
            f" {baseline.shape}."
        )
    difference = candidate - baseline
    mean, rng = float(difference.mean()), np.random.default_rng(seed)
    units = [difference.mean(axis) for axis in (0, 1)]  # means per question, means per seed
    variances = np.array([_variance_of_mean(unit, rng) for unit in units])
    half = 0.0 if difference.size > 1 else math.inf
    if variance := variances.sum():
        parts = zip(variances, units, strict=True)
        freedom = variance**2 / sum(v**2 / (len(unit) - 1) for v, unit in parts if v)
        half = float(student.ppf(0.975, freedom) * np.sqrt(variance))
    return Difference(mean, mean - half, mean + half, *difference.shape)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Format the mean and standard deviation over seeds, e.g. `0.812 ± 0.004`."""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def _variance_of_mean(values: np.ndarray, rng: np.random.Generator) -> float:
    """Estimate the variance of the mean by the bootstrap; drawing one value fewer than there are
    makes the estimate unbiased.
    """
    drawn = len(values) - 1
    if not drawn:
        return 0.0
    block = min(RESAMPLES, max(1, BLOCK // drawn))
    blocks = -(-RESAMPLES // block)
    means = [rng.choice(values, (block, drawn)).mean(axis=1) for _ in range(blocks)]
    return float(np.var(means))
