"""Benchmarks, one file each: read official files, make questions, score answers, write results.

Imports `common`, `metrics` and `data`.
"""

from typing import Any

from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores
from dpn.common.registry import Registry

_registry = Registry("dpn.benchmarks", Benchmark)
names, resolve = _registry.names, _registry.resolve


def build(name: str, **arguments: Any) -> Benchmark:
    """Return the benchmark of a name, which checks its arguments itself."""
    return resolve(name)(**arguments)


__all__ = ["Benchmark", "OfficialFile", "Question", "Scores", "build", "names", "resolve"]
