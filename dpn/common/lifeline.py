"""The process that this one's life hangs on: the one that launched a sweep, or a job of several
processes.
"""

import functools
import os
import socket
import threading
import time
from contextlib import suppress

import psutil

CHECK_S = 0.5
"""Seconds between two looks."""
_PARENT = "DPN_PARENT"


def named() -> dict[str, str]:
    """The environment in which this process starts others whose life is to hang on its own."""
    return {_PARENT: f"{os.getpid()}@{socket.gethostname()}"}


def is_launcher() -> bool:
    """Whether others hang on this process."""
    return os.environ.get(_PARENT) == named()[_PARENT]


def hangs() -> bool:
    """Whether this process hangs on another one: not on one that is out of reach, as jobs that a
    scheduler runs would.
    """
    host = os.environ.get(_PARENT, "").partition("@")[2]
    scheduled = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    return host == socket.gethostname() and not scheduled and not is_launcher()


def follow() -> bool:
    """End this process as soon as the one has that it hangs on, however that was killed; and what
    waits for a job or loads data, which does not look.

    Returns:
        Whether it hangs on one.
    """
    if not hangs():
        return False
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # Ctrl-C reaches the launching process alone, so that it does not count twice
    _end_with(int(os.environ[_PARENT].partition("@")[0]))
    return True


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine, and it has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@functools.cache
def _end_with(pid: int) -> None:
    threading.Thread(target=_watch, args=(pid,), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    while alive(pid):
        time.sleep(CHECK_S)
    for other in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            hangs = other.environ().get(_PARENT) == os.environ[_PARENT]
            if hangs and os.getpgid(other.pid) != other.pid:  # else it looks for itself
                other.kill()
    os._exit(os.EX_TEMPFAIL)  # files are never half written, see dpn.common.files
