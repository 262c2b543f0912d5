"""Runs that were found in some folders, grouped for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpn.reports.points import Point, points_of
from dpn.reports.runs import Run, find_runs, read_run


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
