"""One folder per command: named by its settings, written by one process at a time, resumable.

    outputs/<experiment>/<slug>/
        config.yaml status.json metrics.json rows.jsonl checkpoints/ model/ report.md

Two guards keep two processes from writing one run. An exclusive `flock` ends with its process, so
a killed run never looks alive; the heartbeat in `status.json` covers runs on other machines, where
file locks may not work.
"""

import logging
import os
import shlex
import signal
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import OmegaConf

from dpn.common.errors import DPNError, FileError
from dpn.common.files import remove_temporary, write_json, write_text
from dpn.common.lifeline import alive
from dpn.runs.commit import commit
from dpn.runs.lock import FolderLock
from dpn.runs.path import config_hash, holds_run, run_path
from dpn.runs.request import Request
from dpn.runs.saved import SETTINGS, STATUS, read_status
from dpn.runs.signals import Interrupted, StopRequest
from dpn.runs.typed import as_typed

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""Seconds between heartbeats."""
DEAD_AFTER_S = 60.0
"""Seconds after the last heartbeat when a run counts as dead."""
_KEPT = ("trained",)
"""Fields of status.json that a further attempt keeps."""


class RunError(DPNError, RuntimeError):
    """A run cannot start or continue."""


class RunIsLive(RunError):
    """Another process is writing the run folder."""


class OtherRun(RunError, ValueError):
    """The folder holds a run with other settings."""


class FolderLost(RunError):
    """The run folder was removed while the run was writing to it."""


class RunFolder:
    """The folder of a run, held by the process that writes it.

    Entering it as a context manager claims the folder; leaving it records how the run ended.

    Args:
        path: The folder.
        identity: Hash of the run's config; a folder with a run of another hash is refused.
        settings: Content of config.yaml.
        command: Command line of this run.
        writer: False for all processes of a distributed run but the first, which only read.
    """

    def __init__(
        self,
        path: Path,
        identity: str = "",
        settings: str = "",
        command: str = "",
        writer: bool = True,
    ) -> None:
        self.path = path
        self.identity, self.settings, self.command = identity, settings, command
        self.writer = writer
        self.stop = StopRequest()
        self._lock = FolderLock(path)
        self._status: dict[str, Any] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._writing = threading.Lock()
        self._log: logging.Handler = logging.NullHandler()

    @classmethod
    def of(cls, request: Request, path: Path | None = None, writer: bool = True) -> Self:
        """The folder of a request; `paths.run_dir` of its config becomes the folder's path.

        Args:
            request: Request whose folder this is.
            path: Folder to use instead of the one that follows from the request.
            writer: Whether this process writes, see `RunFolder`.
        """
        config = request.config
        path = path or run_path(request)
        config.paths.run_dir = str(path)
        identity = config_hash(config)
        settings = OmegaConf.to_yaml(OmegaConf.create(as_typed(config)))
        folder = cls(path, identity, settings, shlex.join(request.command), writer)
        try:
            known = read_status(path).get("identity", identity)
        except FileError as damage:
            if (path / SETTINGS).exists() and not holds_run(path, config):
                raise OtherRun(
                    f"{damage} Its config.yaml has other settings than this run, or is damaged,"
                    " too; choose another paths.run_dir or remove the folder."
                ) from None
            known = identity
        if known != identity and holds_run(path, config):
            folder.identity = known  # the hash that an earlier version gave this run
        return folder

    @property
    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty for a new folder, or if the file is damaged."""
        try:
            return read_status(self.path)
        except FileError:
            return {}

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.status.get("status") == "finished"

    def __enter__(self) -> Self:
        if self.writer:
            self._claim()
            self._heart.start()
            self._open_log()
        self.stop.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.restore()
        if not self.writer:
            return
        self._ended.set()
        self._heart.join()
        if self._lock.lost:
            self._close_log(None)
            self._lock.release()
            raise self._lost() from error
        self._close_log(error)
        if error is None:
            outcome: dict[str, Any] = {"status": "finished", "error": None}
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            outcome = {"status": "interrupted", "error": str(error) or type(error).__name__}
        else:
            outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        try:
            self.update(ended=time.time(), **outcome)
        except OSError as problem:  # a full disk must not hide the original error
            log.error("%s: could not record `%s`: %s", self.path, outcome["status"], problem)
        finally:
            self._lock.release()

    def record(self, status: str, error: Exception) -> None:
        """Record the outcome of a run that did not start."""
        if self.writer:
            self._claim()
            self._open_log()
            self._close_log(error)
            self.update(status=status, error=str(error), ended=time.time())
            self._lock.release()

    def update(self, **fields: Any) -> None:
        """Add fields to the status."""
        if not self.writer:
            return
        with self._writing:
            if self._lock.lost:  # writing would make the folder again
                raise self._lost()
            self._status |= fields | {"heartbeat": time.time()}
            write_json(self.path / STATUS, self._status)

    def _open_log(self) -> None:
        self._log = logging.FileHandler(self.path / "log.txt", delay=True)
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)

    def _close_log(self, error: BaseException | None) -> None:
        logging.getLogger().removeHandler(self._log)
        if error is not None:
            text = "".join(traceback.format_exception(error))
            self._log.emit(logging.makeLogRecord({"levelname": "ERROR", "msg": text}))
        self._log.close()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.update()
            except FolderLost:
                self.stop.patient = False
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return
            except OSError as problem:
                log.warning("%s: no heartbeat: %s", self.path, problem)

    def _lost(self) -> FolderLost:
        return FolderLost(
            f"{self.path} was removed or replaced while this run was writing to it, so the run was"
            " stopped; the same command starts it again."
        )

    def _claim(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise RunIsLive(self._live_message(self.status))
        try:
            before = self._before()
            # On this host the lock has decided, if there are locks at all.
            here = before.get("host") == socket.gethostname() and self._lock.works
            if not here and is_live(self.path, before, self._lock.now()):
                raise RunIsLive(self._live_message(before))
            if before.get("identity", self.identity) != self.identity:
                raise OtherRun(
                    f"{self.path} holds a run with other settings (hash {before['identity']}, this"
                    f" one has {self.identity}); choose another paths.run_dir or remove the folder."
                )
            if before.get("status") == "running":
                log.warning("Taking over %s: its process %s died.", self.path, before.get("pid"))
            remove_temporary(self.path)
            self._status = {key: before[key] for key in _KEPT if key in before}
            self.update(
                status="running",
                error=None,
                host=socket.gethostname(),
                pid=os.getpid(),
                started=time.time(),
                attempt=before.get("attempt", 0) + 1,
                identity=self.identity,
                command=self.command,
                commit=commit(),
            )
            write_text(self.path / SETTINGS, self.settings)
        except BaseException:
            self._lock.release()
            raise

    def _before(self) -> dict[str, Any]:
        """The status of the attempt before this one."""
        try:
            return read_status(self.path)
        except FileError as damage:
            log.warning("%s This run continues from its checkpoints, if there are any.", damage)
            return {}

    def _live_message(self, status: Mapping[str, Any]) -> str:
        return (
            f"{self.path} is being written by process {status.get('pid', '?')} on"
            f" {status.get('host', '?')}; wait for it, stop it, or change a setting to get another"
            " folder."
        )


def is_live(folder: Path, status: Mapping[str, Any], clock: float | None = None) -> bool:
    """Whether another process is still writing a run folder, as far as its `status.json` shows.

    This complements the lock, which does not reach other machines. The clock of another machine may
    be wrong, so its heartbeat counts only while the file itself is new.

    Args:
        folder: Run folder.
        status: Content of its `status.json`.
        clock: Time of the folder's file system; default: this machine's time.
    """
    beat, pid, now = status.get("heartbeat"), status.get("pid"), time.time()
    if status.get("status") != "running" or beat is None or now - beat > DEAD_AFTER_S:
        return False
    if status.get("host") == socket.gethostname():
        return pid not in (None, os.getpid()) and alive(pid, since=status.get("started") or beat)
    try:
        written = (folder / STATUS).stat().st_mtime
    except OSError:
        return False
    return abs((now if clock is None else clock) - written) <= DEAD_AFTER_S
