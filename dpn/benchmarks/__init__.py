"""Benchmarks, one file each: read official files, make questions, score answers, write results.

Imports `common`, `metrics` and `data`.
"""

from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores
from dpn.common.registry import Registry

_registry = Registry("dpn.benchmarks", Benchmark)
names, resolve, build = _registry.names, _registry.resolve, _registry.build

__all__ = ["Benchmark", "OfficialFile", "Question", "Scores", "build", "names", "resolve"]
