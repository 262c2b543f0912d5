"""Random numbers that depend only on their keys, not on batch, process or position."""

from collections.abc import Sequence

import numpy as np


def uniform(keys: np.ndarray, *words: int) -> np.ndarray:
    """A number in [0, 1) for each key; equal keys and words give equal numbers.

    Args:
        keys: uint64, any shape.
        words: Integers that name the draw, e.g. seed and step.
    """
    return (_folded(keys, words) >> np.uint64(11)).astype(np.float64) / 2**53


def seed(*words: int) -> int:
    """A seed in [0, 2**63) for torch's generators, from integers such as run seed and step."""
    return int(_folded(np.zeros(1, dtype=np.uint64), words)[0] >> np.uint64(1))


def _folded(keys: np.ndarray, words: Sequence[int]) -> np.ndarray:
    state = keys.astype(np.uint64)
    for word in words:
        state = mix(state ^ mix(np.full(1, word % 2**64, dtype=np.uint64)))
    return state


def mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that spreads every bit."""
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
