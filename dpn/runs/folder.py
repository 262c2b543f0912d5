"""One folder per command: named by its settings, written by one process at a time, resumable.

    outputs/<experiment>/<slug>/
        config.yaml status.json metrics.json rows.jsonl checkpoints/ model/ report.md

Two guards keep two processes from writing one run. An exclusive `flock` ends with its process, so
a killed run never looks alive; the heartbeat in `status.json` covers runs on other machines, where
file locks may not work.
"""

import logging
import math
import os
import shlex
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import OmegaConf

from dpn.common.errors import DPNError
from dpn.common.files import read_json, write_json, write_text
from dpn.common.lifeline import alive
from dpn.runs.commit import commit
from dpn.runs.lock import FolderLock
from dpn.runs.path import config_hash, holds_run, run_path
from dpn.runs.request import Request
from dpn.runs.signals import Interrupted, StopRequest

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""Seconds between heartbeats."""
DEAD_AFTER_S = 60.0
"""Seconds after the last heartbeat when a run counts as dead."""


class RunError(DPNError, RuntimeError):
    """A run cannot start or continue."""


class RunIsLive(RunError):
    """Another process is writing the run folder."""


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
        settings = OmegaConf.to_yaml(config, resolve=True)
        folder = cls(path, config_hash(config), settings, shlex.join(request.command), writer)
        known = folder.status.get("identity", folder.identity)
        if known != folder.identity and holds_run(path, config):
            folder.identity = known  # the hash that an earlier version gave this run
        return folder

    @property
    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty for a new folder."""
        return read_json(self.path / "status.json") or {}

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
            self._status |= fields | {"heartbeat": time.time()}
            write_json(self.path / "status.json", self._status)

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
            except OSError as problem:
                log.warning("%s: no heartbeat: %s", self.path, problem)

    def _claim(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise RunIsLive(self._live_message(self.status))
        try:
            before = self.status
            if is_live(before):
                raise RunIsLive(self._live_message(before))
            if before.get("identity", self.identity) != self.identity:
                raise ValueError(
                    f"{self.path} holds a run with other settings (hash {before['identity']}, this"
                    f" one has {self.identity}); choose another paths.run_dir or remove the folder."
                )
            if before.get("status") == "running":
                log.warning("Taking over %s: its process %s died.", self.path, before.get("pid"))
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
            write_text(self.path / "config.yaml", self.settings)
        except BaseException:
            self._lock.release()
            raise

    def _live_message(self, status: Mapping[str, Any]) -> str:
        return (
            f"{self.path} is being written by process {status.get('pid', '?')} on"
            f" {status.get('host', '?')}; wait for it, stop it, or change a setting to get another"
            " folder."
        )


def is_live(status: Mapping[str, Any]) -> bool:
    """Whether a `status.json` says that another process is still writing its folder.

    This complements the lock, which does not reach other machines.
    """
    beat, pid = status.get("heartbeat"), status.get("pid")
    silent_s = time.time() - beat if isinstance(beat, int | float) else math.inf
    if status.get("status") != "running" or silent_s > DEAD_AFTER_S:
        return False
    if status.get("host") != socket.gethostname():
        return True
    return isinstance(pid, int) and pid != os.getpid() and alive(pid)
