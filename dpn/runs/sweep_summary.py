"""Summary of a multirun: the outcome of each run, read from its folder."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dpn.common.errors import FileError
from dpn.common.files import read_json, write_text
from dpn.common.table import Table
from dpn.common.text import one_line
from dpn.runs import saved
from dpn.runs.folder import is_live

HEAD = ("job", "outcome", "router", "keep", "visual MACs", "accuracy", "folder")
Jobs = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class End:
    """Outcome of a run.

    Attributes:
        outcome: `ok`, `skipped` (finished before the sweep began), `unreachable`, `failed`,
            `interrupted`, `damaged`, `running` (by another process), or `not started`.
        why: Reason in a sentence, if there is one.
    """

    outcome: str
    why: str = ""

    @property
    def done(self) -> bool:
        """Whether the run is done."""
        return self.outcome in ("ok", "skipped", "unreachable")


def summarize(folder: Path, started: float) -> str | None:
    """Print the outcome of each run, and write the outcomes to summary.md.

    Args:
        folder: Folder of the sweep.
        started: Start of the sweep, in seconds since the epoch.

    Returns:
        Number of runs that are not done, by outcome, in words; None if all are done.
    """
    paths = [path for path in (folder / "jobs").glob("*.json") if path.stem.isdigit()]
    paths.sort(key=lambda path: int(path.stem))
    jobs: Jobs = {int(path.stem): read_json(path) for path in paths}
    ends = {n: _end(job, started) for n, job in jobs.items() if job["same_as"] is None}
    body = tuple(_line(number, end, jobs) for number, end in ends.items())
    counted = _counts(Counter(end.outcome for end in ends.values())) or "nothing began"
    note = f"{len(jobs)} jobs, {len(ends)} runs: {counted}."
    reasons = [f"- job {n} {end.outcome}: {end.why}" for n, end in ends.items() if end.why]
    page = Table(folder.name, HEAD, body, note).markdown()
    write_text(folder / "summary.md", "\n".join([page, *reasons, ""]))
    print("", *_aligned([HEAD, *body]), "", *reasons, note, folder / "summary.md", sep="\n")
    return _counts(Counter(end.outcome for end in ends.values() if not end.done))


def _end(job: dict[str, Any], started: float) -> End:
    if job["folder"] is None:
        return End("failed", one_line(job["error"]))
    folder = Path(job["folder"])
    try:
        status = saved.read_status(folder)
    except FileError as damage:
        return End("damaged", one_line(str(damage)))
    state, error = status.get("status", "not started"), one_line(status.get("error") or "")
    if state == "finished":
        return End("ok" if (status.get("ended") or 0) >= started else "skipped")
    if state == "running" and not is_live(folder, status):
        return End("interrupted", "its process was killed")
    return End(state, error)


def _line(number: int, end: End, jobs: Jobs) -> tuple[str, ...]:
    """Cells of a run: its jobs, outcome, router, budget, share of visual MACs, accuracy, folder."""
    folder = jobs[number]["folder"]
    same = [str(other) for other, job in jobs.items() if job["same_as"] == number]
    metrics: dict[str, float | None] = {}
    if folder:
        with suppress(FileNotFoundError, FileError):  # a run that did not get so far
            metrics = saved.read_metrics(Path(folder))
    values = (metrics.get("cost/visual_macs_ratio"), metrics.get("val/accuracy"))
    known = ("" if value is None else f"{value:.3f}" for value in values)
    method = _method(folder, jobs[number].get("overrides") or ())
    return (", ".join([str(number), *same]), end.outcome, *method, *known, folder or "")


def _method(folder: str | None, overrides: Sequence[str]) -> tuple[str, str]:
    """Router, with the projector if that compresses, and requested share of visual MACs: of the
    run's config or, before there is one, of its command.
    """
    config = OmegaConf.create()
    if folder:
        with suppress(FileNotFoundError, FileError):
            config = saved.read_settings(Path(folder))
    typed = dict(word.split("=", 1) for word in overrides if "=" in word)

    def value(key: str) -> str:
        section, _, name = key.partition(".")
        node = config.get(section)
        known = node.get(name) if isinstance(node, DictConfig) else None
        known = typed.get(section if name == "name" else key) if known is None else known
        return "" if known is None else str(known)

    parts = [value("router.name"), value("projector.name")]
    shown = [
        name for name, plain in zip(parts, ("", "mlp"), strict=True) if name not in ("", plain)
    ]
    keeps = [value("router.keep"), value("projector.keep")]
    return " + ".join(shown), " ".join(filter(None, keeps))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns; folders come last, since they are often too wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
