"""Read run folders, including damaged ones."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from dpn.common.errors import FileError
from dpn.common.text import shorten
from dpn.metrics.answers import Row, metric_of
from dpn.runs import saved
from dpn.runs.folder import is_live

T = TypeVar("T")

#: Files of which a run folder, or one with the results of an evaluation, has at least one.
MARKS = {"status.json", "metrics.json", "rows.jsonl"}
OUTCOMES = ("finished", "running", "interrupted", "failed", "unreachable")


@dataclass(frozen=True)
class Run:
    """Content of a run folder.

    Attributes:
        folder: Path of the folder.
        outcome: One of `OUTCOMES`, `damaged`, or `evaluation` for a folder of `dpn.eval`.
        problem: Error that ended the run, or what is damaged; empty if it finished.
        config: Resolved settings.
        overrides: Overrides of its command; None for runs that did not record them.
        metrics: Content of metrics.json.
        rows: Its answers.
        curves: Values logged in training.
    """

    folder: Path
    outcome: str
    problem: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    curves: Sequence[Mapping[str, Any]] = ()

    @property
    def metric(self) -> str:
        """Rule that scored its answers, see `dpn.metrics.rules`."""
        data = self.config.get("data")
        asked = data.get("metric") if isinstance(data, Mapping) else None
        return metric_of(self.rows if self.rows else [{"metric": asked}])

    @property
    def seed(self) -> Any:
        """Seed of the run."""
        return self.config.get("seed")


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """All run folders in some folders, at any depth, each once.

    Raises:
        FileNotFoundError: If one of the folders does not exist, or there is no run in them.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder; give run folders or folders with runs, e.g. outputs/."
            )
        for place, names, files in os.walk(folder):
            names.sort()
            if MARKS & {*files}:
                names.clear()  # what lies inside belongs to the run
                found.setdefault(Path(place).resolve(), Path(place))
    if not found:
        raise FileNotFoundError(
            f"There is no run in {', '.join(map(str, folders))}: no folder below has a status.json."
        )
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Read a run; one with files that cannot be read is `damaged`, and nothing is raised."""
    damage: list[str] = []

    def read(name: str, reader: Callable[[Path], T]) -> T | None:
        try:
            return reader(folder)
        except FileNotFoundError:
            damage.append(f"{name} is missing.")
        except FileError as problem:
            damage.append(_short(str(problem)))
        return None

    status = read(saved.STATUS, _existing_status) or {}
    config = read(saved.SETTINGS, _settings) or {}
    outcome, problem = _outcome(folder, status)
    finished = outcome == "finished"
    metrics = (read(saved.METRICS, saved.read_metrics) if finished else None) or {}
    rows = (read(saved.ROWS, saved.read_answers) if finished else None) or []
    curves = (read(saved.CURVES, saved.read_curves) if finished else None) or []
    if not damage and outcome not in OUTCOMES:
        damage.append(f"status.json: {_short(outcome)} is not the status of a run.")
    if damage:
        outcome, problem = "damaged", " ".join(damage)
    elif "benchmarks" in config:
        outcome, problem = "evaluation", "Made by dpn.eval; training runs are compared."
    overrides = status.get("overrides")
    typed = None if overrides is None else tuple(map(str, overrides))
    return Run(folder, outcome, problem, config, typed, metrics, rows, curves)


def _outcome(folder: Path, status: Mapping[str, Any]) -> tuple[str, str]:
    outcome = str(status.get("status"))
    problem = "" if outcome == "finished" else _short(str(status.get("error") or ""))
    if outcome == "running":
        if not is_live(folder, status):
            return "interrupted", "Its process died; the same command resumes it."
        problem = f"By process {status.get('pid')} on {status.get('host')}."
    return outcome, problem


def _existing_status(folder: Path) -> dict[str, Any]:
    status = saved.read_status(folder)
    if not status and not (folder / saved.STATUS).exists():
        raise FileNotFoundError(f"{folder / saved.STATUS} does not exist.")
    return status


def _settings(folder: Path) -> dict[str, Any]:
    config = saved.read_settings(folder, needed=["paths"])
    if not isinstance(config.get("seed"), int):
        raise FileError(f"{folder / saved.SETTINGS} is damaged: its `seed` is not a whole number.")
    return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]


def _short(text: str) -> str:
    return shorten(text, 300)
