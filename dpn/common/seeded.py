"""Random numbers that depend on what they are for, never on place, batch or process."""

import numpy as np


def uniform(keys: np.ndarray, *words: int) -> np.ndarray:
    """A number in [0, 1) for each key, the same for the same key and words.

    Args:
        keys: uint64, any shape.
        words: whole numbers that name the draw, e.g. seed and step.
    """
    state = keys.astype(np.uint64)
    for word in words:
        state = mix(state ^ mix(np.full(1, word % 2**64, dtype=np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) / 2**53


def mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that spreads every bit."""
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
