"""Official files to questions, answers to official files and scores; one benchmark, one file."""

from dpn.benchmarks.base import Benchmark, OfficialFile, Question, Scores
from dpn.parts import Family

_family = Family("dpn.benchmarks", Benchmark)
names, resolve, build = _family.names, _family.resolve, _family.build

__all__ = ["Benchmark", "OfficialFile", "Question", "Scores", "build", "names", "resolve"]
