"""A multirun: jobs that skip, resume or try again what their command asks for, whoever starts them.

    outputs/multirun/<overrides>-<hash>/
        jobs/<number>.json summary.md multirun.yaml

Every job has its own run folder, so what became of it is read there. The process that launched the
sweep holds the sweep's folder; jobs in processes of their own end with it.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from hydra.errors import HydraException

from dpn.common.distributed import is_first_process
from dpn.common.files import read_json, write_json, write_text
from dpn.common.lifeline import CHECK_S, child_env, die_with_launcher, is_launcher
from dpn.data.batch import DataError
from dpn.runs.folder import RunError, RunIsLive
from dpn.runs.lock import FolderLock
from dpn.runs.path import SWEEP, config_hash, sweep_name, sweep_path
from dpn.runs.request import ConfigError, Request
from dpn.runs.signals import Interrupted, StopRequest

log = logging.getLogger(__name__)

Place = Callable[[Request], Path]
"""The folder of a request's results."""
EXPECTED = (ConfigError, RunError, DataError, OSError)
"""Errors whose sentence says it all."""
STOP = "stop"
"""File in a sweep's folder that holds the signal after which no job begins."""


class Sweep:
    """Holds a multirun's folder while its jobs run, and sums up what became of them at the end.

    Args:
        command: the multirun itself, see `dpn.config.compose.compose_jobs`.
        jobs: as far as they are known before.
        place: where the results of a job are.
    """

    def __init__(self, command: Request, jobs: Sequence[Request], place: Place) -> None:
        name = sweep_name(command)
        self.jobs, self.place = jobs, place
        self.folder = sweep_path(command.config, name)
        self._lock = FolderLock(self.folder)
        self._stop = _SweepStop(self.folder / STOP)
        self._environment = child_env() | {SWEEP: name}
        self._started = 0.0

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise RunIsLive(f"{self.folder}: the same sweep is running already; wait, or stop it.")
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        (self.folder / STOP).unlink(missing_ok=True)
        self._started = time.time()
        for number, entry in enumerate(_planned(self.jobs, self.place)):
            write_json(entry_path(self.folder, number), entry)
        os.environ.update(self._environment)
        self._stop.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from dpn.runs.sweep_summary import summarize

        self._stop.restore()
        for name in self._environment:
            del os.environ[name]
        try:
            if isinstance(error, HydraException):
                return
            left = summarize(self.folder, self._started)
            if error is None and (self.folder / STOP).exists():
                raise Interrupted((self.folder / STOP).read_text())
            if isinstance(error, Exception):
                reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
                raise RunError(
                    f"The sweep broke off ({reason}); the same command goes on."
                ) from error
            if error is None and left:
                raise RunError(f"{left}; the same command tries again what is not done.")
        finally:
            self._lock.release()


class _SweepStop(StopRequest):
    """Tells all jobs, wherever they are, to stop after their step."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.patient = file, True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        write_text(self.file, signal.Signals(signum).name)
        super()._handle(signum, frame)


def run_job(request: Request, run: Callable[[Request], Any], place: Place) -> Any:
    """Run a job of a sweep, whose failure is told and does not stop the others.

    Returns:
        What `run` does; None if the job failed, or had nothing to do.
    """
    assert request.sweep is not None
    assert request.job is not None
    folder = sweep_path(request.config, request.sweep)
    entry = read_json(entry_path(folder, request.job))
    if entry is None:  # chosen by the sweeper as it goes
        (entry,) = _planned([request], place)
        if is_first_process():
            write_json(entry_path(folder, request.job), entry)
    if entry["same_as"] is not None:
        print(f"Job {request.job} is the same run as job {entry['same_as']}.")
        return None
    try:
        with _following(folder):
            return run(request)
    except Interrupted as error:
        if is_launcher():  # so it is meant for the sweep
            write_text(folder / STOP, str(error))
    except EXPECTED as error:
        log.error("Job %d failed. %s", request.job, error)
    except Exception:
        log.exception("Job %d failed.", request.job)
    return None


@contextmanager
def _following(folder: Path) -> Iterator[None]:
    """While the block runs, a process that hangs on the launching one stops when that is asked to.

    Raises:
        Interrupted: if the sweep was stopped before.
    """
    follows = die_with_launcher()
    if (follows or is_launcher()) and (folder / STOP).exists():
        raise Interrupted((folder / STOP).read_text())
    if not follows:
        yield
        return
    # What joblib sets in its processes can not start data workers.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    stop, done = StopRequest(), threading.Event()
    stop.install()
    thread = threading.Thread(target=_pass_on, args=(folder / STOP, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        stop.restore()


def _pass_on(file: Path, done: threading.Event) -> None:
    while not done.wait(CHECK_S):
        if file.exists():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def entry_path(folder: Path, number: int) -> Path:
    """Where a sweep says what a job is."""
    return folder / "jobs" / f"{number}.json"


def _planned(jobs: Sequence[Request], place: Place) -> list[dict[str, Any]]:
    """What each job is: its overrides, its folder, and whether an earlier one is the same run."""
    entries: list[dict[str, Any]] = []
    first: dict[tuple[Path, str], int] = {}
    for number, job in enumerate(jobs):
        entry: dict[str, Any] = {"overrides": job.overrides, "same_as": None}
        try:
            path = place(job)
            before = first.setdefault((path, config_hash(job.config)), number)
            entry |= {"folder": str(path), "same_as": None if before == number else before}
        except ConfigError as error:  # a config that can not be resolved names no folder
            entry |= {"folder": None, "error": str(error)}
        entries.append(entry)
    return entries
