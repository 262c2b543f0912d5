"""Read run folders, including damaged ones."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dpn.common.text import shorten
from dpn.metrics.answers import Row
from dpn.runs.folder import is_live

#: Files of which a run folder, or one with the results of an evaluation, has at least one.
MARKS = {"status.json", "metrics.json", "rows.jsonl"}
OUTCOMES = ("finished", "running", "interrupted", "failed", "unreachable")
#: Fields of an answer that tables and figures read.
_ROW = {
    "prompt": str,
    "family": str | int | float | None,
    "difficulty": str | int | float | None,
    "score": int | float | None,
    "route": dict,
    "rows": list,
    "base_rows": int,
    "visual_macs_ratio": int | float | None,
}


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

    def read(name: str, parse: Callable[[str], Any], needed: bool = True) -> Any:
        try:
            return parse((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if needed:
                damage.append(f"{name} is missing.")
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
            damage.append(f"{name}: {_short(str(problem))}")

    status = read("status.json", _mapping) or {}
    config = read("config.yaml", _settings) or {}
    outcome, problem = _outcome(status)
    finished = outcome == "finished"
    metrics = read("metrics.json", _numbers, finished) if finished else {}
    rows = read("rows.jsonl", _answers, finished) if finished else ()
    curves = read("curves.jsonl", _lines, needed=False) if finished else ()
    if not damage and outcome not in OUTCOMES:
        damage.append(f"status.json: {_short(outcome)} is not the status of a run.")
    if damage:
        outcome, problem = "damaged", " ".join(damage)
    elif "benchmarks" in config:
        outcome, problem = "evaluation", "Made by dpn.eval; training runs are compared."
    overrides = status.get("overrides")
    typed = tuple(map(str, overrides)) if isinstance(overrides, list) else None
    found = metrics or {}, rows or (), curves or ()
    return Run(folder, outcome, problem, config, typed, *found)


def _outcome(status: Mapping[str, Any]) -> tuple[str, str]:
    outcome = str(status.get("status"))
    problem = "" if outcome == "finished" else _short(str(status.get("error") or ""))
    if outcome == "running":
        if not is_live(status):
            return "interrupted", "Its process died; the same command resumes it."
        problem = f"By process {status.get('pid')} on {status.get('host')}."
    return outcome, problem


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=lambda name: None)  # NaN is not a number
    except json.JSONDecodeError as problem:
        what = f"not complete JSON ({problem.msg}, letter {problem.pos})" if text else "empty"
        raise ValueError(f"it is {what}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is not a mapping but {_short(text)}")
    return value


def _numbers(text: str) -> dict[str, float | None]:
    values = _mapping(text)
    for name, value in values.items():
        if not isinstance(value, int | float | None):
            raise ValueError(f"{name} is not a number: {_short(str(value))}")
    return values


def _settings(text: str) -> dict[str, Any]:
    value = yaml.safe_load(text)
    kinds = {"paths": dict, "seed": int}
    if isinstance(value, dict) and all(isinstance(value.get(n), k) for n, k in kinds.items()):
        return value
    raise ValueError("these are not the settings of a run.")


def _lines(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(io.StringIO(text), 1):
        try:
            rows.append(_mapping(line))
        except ValueError as problem:
            raise ValueError(f"line {number}: {problem}") from None
    return rows


def _answers(text: str) -> list[Row]:
    rows = _lines(text)
    for number, row in enumerate(rows, 1):
        wrong = [n for n, kind in _ROW.items() if n not in row or not isinstance(row[n], kind)]
        if wrong or not _is_route(row["route"]) or len(row["rows"]) != len(rows[0]["rows"]):
            raise ValueError(f"line {number}: it is not an answer, see {wrong or 'route, rows'}.")
    return rows


def _is_route(route: Mapping[str, Any]) -> bool:
    return all(layer.isdigit() and isinstance(name, str) for layer, name in route.items())


def _short(text: str) -> str:
    return shorten(text, 300)
