"""Signals that stop a run so that it can be resumed."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Ctrl-C or a scheduler's signal; a `BaseException`, so that code that skips errors lets it
    through.
    """


class StopRequest:
    """Turns signals into `Interrupted`: at once or, while `patient`, after the current step.

    Ctrl-C sends SIGINT; Slurm sends SIGTERM or SIGUSR1 before it ends a job. A second signal acts
    at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.patient = False
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Install the signal handlers, again if they were replaced; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous.setdefault(signum, signal.getsignal(signum))
                signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, signal.Signals(signum).name
        if again or not self.patient:
            raise Interrupted(self.signal)
        log.warning("%s: stopping after this step (once more to stop at once).", self.signal)
