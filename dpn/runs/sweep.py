"""Multiruns: each job skips, resumes or repeats its run, whichever launcher starts it.

    outputs/multirun/<overrides>-<hash>/
        jobs/<number>.json summary.md multirun.yaml

Every job has its own run folder, which holds its outcome. The launcher's process holds the folder
of the sweep; jobs in other processes end with it.
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

from dpn.common.errors import DPNError
from dpn.common.files import read_json, remove_temporary, write_json, write_text
from dpn.common.lifeline import CHECK_S, child_env, die_with_launcher, is_launcher
from dpn.common.processes import is_first_process
from dpn.runs.folder import RunError, RunIsLive
from dpn.runs.lock import FolderLock
from dpn.runs.path import SWEEP, config_hash, sweep_name, sweep_path
from dpn.runs.request import ConfigError, Request
from dpn.runs.signals import Interrupted, StopRequest

log = logging.getLogger(__name__)

Place = Callable[[Request], Path]
"""Function from a request to the folder of its results."""
EXPECTED = (DPNError, OSError)
"""Errors that are shown without a traceback."""
STOP = "stop"
"""File in a sweep's folder with the name of the signal that stopped it; no job begins after."""


class Sweep:
    """A multirun: holds its folder while the jobs run, and summarizes their outcomes at the end.

    Args:
        command: Request of the multirun itself, see `dpn.config.compose.compose_jobs`.
        jobs: Requests of the jobs, as far as they are known at the start.
        place: Function from a request to the folder of its results.
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
            raise RunIsLive(f"{self.folder}: the same sweep is already running; wait or stop it.")
        remove_temporary(self.folder)
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
                    f"The sweep broke off ({reason}); the same command resumes it."
                ) from error
            if error is None and left:
                raise RunError(f"{left}; the same command tries these again.")
        finally:
            self._lock.release()


class _SweepStop(StopRequest):
    """Makes all jobs, in whichever process, stop after their current step."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file, self.patient = file, True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        write_text(self.file, signal.Signals(signum).name)
        super()._handle(signum, frame)


def run_job(request: Request, run: Callable[[Request], Any], place: Place) -> Any:
    """Run a job of a sweep; if it fails, the error is logged and the other jobs still run.

    Returns:
        The result of `run`; None if the job failed or repeats another one.
    """
    assert request.sweep is not None
    assert request.job is not None
    folder = sweep_path(request.config, request.sweep)
    entry = read_json(entry_path(folder, request.job))
    if entry is None:  # chosen by the sweeper during the sweep
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
        if is_launcher():  # so the signal is meant for the sweep
            write_text(folder / STOP, str(error))
    except EXPECTED as error:
        log.error("Job %d failed. %s", request.job, error)
    except Exception:
        log.exception("Job %d failed.", request.job)
    return None


@contextmanager
def _following(folder: Path) -> Iterator[None]:
    """While the block runs, let a process with a launcher stop when the sweep is stopped.

    Raises:
        Interrupted: If the sweep was stopped before.
    """
    follows = die_with_launcher()
    if (follows or is_launcher()) and (folder / STOP).exists():
        raise Interrupted((folder / STOP).read_text())
    if not follows:
        yield
        return
    # The start method that joblib sets in its processes cannot start data workers.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    stop, done = StopRequest(), threading.Event()
    stop.install()
    thread = threading.Thread(target=_forward_stop, args=(folder / STOP, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        stop.restore()


def _forward_stop(file: Path, done: threading.Event) -> None:
    while not done.wait(CHECK_S):
        if file.exists():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def entry_path(folder: Path, number: int) -> Path:
    """File of a sweep that describes a job."""
    return folder / "jobs" / f"{number}.json"


def _planned(jobs: Sequence[Request], place: Place) -> list[dict[str, Any]]:
    """Entries of jobs: overrides, folder, and the number of an earlier job with the same run."""
    entries: list[dict[str, Any]] = []
    first: dict[tuple[Path, str], int] = {}
    for number, job in enumerate(jobs):
        entry: dict[str, Any] = {"overrides": job.overrides, "same_as": None}
        try:
            path = place(job)
            before = first.setdefault((path, config_hash(job.config)), number)
            entry |= {"folder": str(path), "same_as": None if before == number else before}
        except ConfigError as error:  # a config that cannot be resolved has no folder
            entry |= {"folder": None, "error": str(error)}
        entries.append(entry)
    return entries
