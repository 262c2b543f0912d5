"""End this process when its launcher dies.

The launcher is the process that started a sweep, or a job of several processes; it names itself in
the environment of what it starts.
"""

import functools
import math
import os
import socket
import threading
import time
from contextlib import suppress

import psutil

CHECK_S = 0.5
"""Seconds between two checks."""
_CLOCK_S = 2.0
"""Precision of the time when a process began."""
_LAUNCHER = "DPN_PARENT"


def child_env() -> dict[str, str]:
    """Environment variables for processes that shall end when this one does."""
    return {_LAUNCHER: f"{os.getpid()}@{socket.gethostname()}"}


def is_launcher() -> bool:
    """Whether this process is the launcher that its environment names."""
    return os.environ.get(_LAUNCHER) == child_env()[_LAUNCHER]


def has_launcher() -> bool:
    """Whether another process on this machine launched this one; jobs that a scheduler runs have
    no launcher.
    """
    host = os.environ.get(_LAUNCHER, "").partition("@")[2]
    scheduled = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    return host == socket.gethostname() and not scheduled and not is_launcher()


def die_with_launcher() -> bool:
    """End this process as soon as its launcher has ended, however that happened, and with it the
    processes that do not check by themselves: those that load data or wait for a job.

    Returns:
        Whether this process has a launcher.
    """
    if not has_launcher():
        return False
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # Ctrl-C reaches the launcher alone, so that it does not count twice
    _end_with(int(os.environ[_LAUNCHER].partition("@")[0]))
    return True


def alive(pid: int, since: float = math.inf) -> bool:
    """Whether a process with this number runs on this machine.

    Args:
        pid: Number of the process.
        since: A time when it ran, in seconds since the epoch; a process that began later has only
            got the number of the one that is meant.
    """
    try:
        process = psutil.Process(pid)
        begun = process.create_time() <= since + _CLOCK_S
        return begun and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):  # or no number of a process at all
        return False


@functools.cache
def _end_with(pid: int) -> None:
    threading.Thread(target=_watch, args=(pid,), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    while alive(pid):
        time.sleep(CHECK_S)
    for other in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            same = other.environ().get(_LAUNCHER) == os.environ[_LAUNCHER]
            if same and os.getpgid(other.pid) != other.pid:  # else it checks by itself
                other.kill()
    os._exit(os.EX_TEMPFAIL)  # files are never half written, see dpn.common.files
