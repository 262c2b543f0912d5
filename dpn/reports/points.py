"""Group runs: those that differ only in their seed are a point, points that differ only in their
budget are a method, and points with the same held-out questions and metric are a data set.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np

from dpn.data.sources.base import Source
from dpn.metrics.answers import Row, by_question
from dpn.metrics.statistics import Difference, paired_difference
from dpn.reports.runs import Run
from dpn.runs.labels import METHOD, labels
from dpn.runs.path import is_identity, key_of

ACCURACY, SHARE = "val/accuracy", "cost/visual_macs_ratio"
METRIC = "data.metric"
#: Settings of data that do not change the held-out questions, beside those that begin with `train`.
_LOADING = {f"data.{field.name}" for field in fields(Source)} | {"data.mix"}
#: Seed and hash in the name of a run folder, which differ between runs of one method.
_SEED = re.compile(r"_?seed-\d+|-[0-9a-f]{8}(?=/|$)")


@dataclass(frozen=True)
class Point:
    """Runs that differ only in their seed.

    Attributes:
        method: Label of the method, which differs from those of other points of its data set
            unless only the budget does, see `dpn.runs.labels`.
        settings: All settings but the seed, by their dotted keys.
        runs: One run for each seed.
    """

    method: str
    settings: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def keep(self) -> str:
        """The requested budget; empty if there is none."""
        asked = (self.settings.get(f"{part}.keep") for part in ("router", "projector"))
        return " ".join(keep for keep in asked if keep and keep[0].isdigit())

    @property
    def name(self) -> str:
        """Method and budget."""
        return f"{self.method} keep={self.keep}" if self.keep else self.method

    @property
    def data_set(self) -> dict[str, str]:
        """The settings that determine the held-out questions, and how answers are scored."""
        drawn = self.settings.get("data.holdout", "null") != "null"
        return {
            key: value
            for key, value in self.settings.items()
            if key.startswith("data.")
            and (key == METRIC or key not in _LOADING)
            and (drawn or not key.startswith("data.train"))
        }

    @cached_property
    def rows(self) -> list[Row]:
        """Answers of all runs."""
        return [row for run in self.runs for row in run.rows]

    def values(self, metric: str) -> list[float]:
        """Values of a metric, of all runs that have it."""
        found = (run.metrics.get(metric) for run in self.runs)
        return [value for value in found if value is not None and isfinite(value)]

    def mean(self, metric: str) -> float | None:
        """Mean of a metric over the runs; None if no run has it."""
        return fmean(values) if (values := self.values(metric)) else None


def points_of(runs: Sequence[Run]) -> tuple[list[Point], list[Run]]:
    """Group finished runs.

    Returns:
        Points in the order of their methods, and runs that repeat the seed of another run.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[Any, Run]] = {}
    repeated = []
    for run in runs:
        settings = {**dict(_settings(run.config)), METRIC: run.metric}
        seeds = groups.setdefault(tuple(sorted(settings.items())), {})
        first = seeds.setdefault(run.seed, run)
        if first is not run:
            same = f"Same settings and seed as {first.folder}."
            repeated.append(replace(run, outcome="repeated", problem=same))
    points = [Point("", dict(found), tuple(seeds.values())) for found, seeds in groups.items()]
    named = (point for group in by_data_set(points) for point in _named(group))
    return sorted(named, key=lambda point: (point.method, point.keep)), repeated


def by_data_set(points: Sequence[Point]) -> list[list[Point]]:
    """Group points whose accuracies can be compared."""
    groups: dict[tuple[tuple[str, str], ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(sorted(point.data_set.items())), []).append(point)
    return [groups[key] for key in sorted(groups)]


def baseline_of(point: Point, points: Sequence[Point]) -> Point | None:
    """The uncompressed point of `router=none` with the most similar other settings."""
    plain = [p for p in points if p.settings.get("router.name") == "none" and _is_whole(p)]
    if not plain or point in plain:
        return None
    return min(plain, key=lambda other: len(_others(point) ^ _others(other)))


def difference(point: Point, baseline: Point) -> Difference | None:
    """Difference of the scores on common seeds and questions; None if there are none."""
    pairs = [(a, b) for a in point.runs for b in baseline.runs if a.seed == b.seed]
    if not pairs:
        return None
    scores = [_scores(run) for pair in pairs for run in pair]
    asked = sorted(set.intersection(*map(set, scores)))
    if not asked:
        return None
    table = np.array([[run[key] for key in asked] for run in scores])  # [2 S, Q]
    return paired_difference(table[::2], table[1::2])


def best(points: Sequence[Point], budget: float) -> Point | None:
    """The most accurate point whose share of visual MACs is at most `budget`."""
    measured = (point for point in points if point.values(ACCURACY) and point.values(SHARE))
    within = [point for point in measured if fmean(point.values(SHARE)) <= budget]
    return max(within, key=lambda point: fmean(point.values(ACCURACY)), default=None)


def _scores(run: Run) -> dict[tuple[str, ...], float]:
    rows = by_question(run.rows).items()
    return {key: row["score"] for key, row in rows if row["score"] is not None}


def _is_whole(point: Point) -> bool:
    return (point.mean(SHARE) or 0.0) > 0.999


def _others(point: Point) -> set[tuple[str, str]]:
    """Settings outside of the method."""
    return {(k, v) for k, v in point.settings.items() if k.partition(".")[0] not in METHOD}


def _typed(run: Run) -> list[str]:
    """Overrides of a run without seed and budget; groups first, as in a folder's name."""
    if run.overrides is None:
        return [_SEED.sub("", run.folder.name)]
    words = [_SEED.sub("", word) for word in run.overrides if _names_method(key_of(word))]
    return sorted(words, key=lambda word: ("." in word.partition("=")[0], word))


def _names_method(key: str) -> bool:
    last = key.rpartition(".")[2]
    return key == "experiment" or (is_identity(key) and last not in ("seed", "keep"))


def _named(points: Sequence[Point]) -> Iterator[Point]:
    """Points of a data set with distinct names; equal names, which differ in other settings, get a
    number.
    """
    seen: Counter[str] = Counter()
    methods = labels([_typed(point.runs[0]) for point in points])
    for point, method in zip(points, methods, strict=True):
        named = replace(point, method=method)
        seen[named.name] += 1
        number = seen[named.name]
        yield named if number == 1 else replace(point, method=f"{method} ({number})")


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings that identify a run, without the seed; paths become the name of the path."""
    paths = {k: v for k, v in config["paths"].items() if isinstance(v, str) and v}
    places = sorted(paths.items(), key=lambda item: -len(item[1]))

    def text(value: Any) -> str:
        if not isinstance(value, str):
            return json.dumps(value, default=str)
        for key, place in places:
            if value == place or value.startswith(f"{place}/"):
                value = f"<{key}>{value[len(place) :]}"
        return _SEED.sub("", value)

    def walk(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{key}.")
            elif is_identity(key) and name != "seed":
                yield key, text(value)

    return list(walk(config))
