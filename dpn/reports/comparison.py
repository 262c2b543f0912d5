"""Runs that were found in some folders, grouped for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpn.reports.points import Point, by_data_set, points_of
from dpn.reports.runs import Run, find_runs, read_run
from dpn.runs.labels import short_values


@dataclass(frozen=True)
class DataSet:
    """Points that answered the same held-out questions, scored by the same metric.

    Attributes:
        number: Number of the data set, from 1.
        label: What differs from the other data sets; empty if there is no other.
        points: The points.
    """

    number: int
    label: str
    points: Sequence[Point]

    @property
    def suffix(self) -> str:
        """End of the names of files and places of this data set."""
        return "" if self.number == 1 else f"-{self.number}"

    def title(self, of: str) -> str:
        """Title of a table or chart of this data set."""
        return f"{of}: {self.label}" if self.label else of


@dataclass(frozen=True)
class Comparison:
    """The runs in some folders.

    Attributes:
        runs: All runs.
        points: Finished runs, grouped by their settings.
        left_out: Runs that did not finish, and runs that repeat the seed of another one.
    """

    runs: Sequence[Run]
    points: Sequence[Point]
    left_out: Sequence[Run]

    @property
    def methods(self) -> list[str]:
        """Names of all methods, in order."""
        return list(dict.fromkeys(point.method for point in self.points))

    @property
    def data_sets(self) -> list[DataSet]:
        """The points, grouped by data set and metric; only points of one group are compared."""
        groups = by_data_set(self.points)
        every = [group[0].data_set for group in groups]
        keys = sorted({key for settings in every for key in settings})
        differing = [key for key in keys if len({settings.get(key) for settings in every}) > 1]
        short = {key: short_values({s.get(key, "-") for s in every}) for key in differing}
        words = ([(key, short[key][s.get(key, "-")]) for key in differing] for s in every)
        labels = (" ".join(f"{k.removeprefix('data.')}={v}" for k, v in pairs) for pairs in words)
        numbered = enumerate(zip(labels, groups, strict=True), 1)
        return [DataSet(number, label, group) for number, (label, group) in numbered]


def compare(folders: Sequence[Path]) -> Comparison:
    """Read all runs in some folders.

    Raises:
        FileNotFoundError: If a folder does not exist, or there is no run in them.
    """
    runs = [read_run(folder) for folder in find_runs(folders)]
    points, repeated = points_of([run for run in runs if run.outcome == "finished"])
    return Comparison(
        runs, points, [*(run for run in runs if run.outcome != "finished"), *repeated]
    )
