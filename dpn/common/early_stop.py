"""A sentence for Ctrl-C or SIGTERM while a command imports its modules or prints its results.

A run handles signals itself (`dpn.runs.signals`); before and after it, these handlers do.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PROCESS = os.getpid()
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


def install() -> None:
    """Install the handlers if this process is a command of dpn, e.g. `python -m dpn.train`."""
    if _is_command() and threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            if signal.getsignal(signum) in _DEFAULTS:
                signal.signal(signum, _stop)


def imported() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: commands call it after their last import."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_status(name: str) -> int:
    """Exit status of a command that a signal stopped: 75 (EX_TEMPFAIL) asks for a requeue."""
    return 130 if name == "SIGINT" else os.EX_TEMPFAIL


def _is_command() -> bool:
    words = sys.orig_argv
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    script = Path(sys.argv[0]).name if sys.argv else ""
    return script.startswith("dpn-") or any(name.startswith("dpn.") for name in module)


def _stop(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _PROCESS:  # a forked worker
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    name = signal.Signals(signum).name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"Stopped by {name}; the same command continues where it stopped.\n".encode())
    os._exit(exit_status(name))  # an exception in the middle of an import can be caught by anyone
