"""Other processes that this one's life hangs on."""

import functools
import os
import threading
import time

import psutil

PARENT = "DPN_PARENT"
"""Environment variable that tells the processes of a job whose life theirs hangs on."""
CHECK_S = 0.5
"""Seconds between two looks."""


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine, and it has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descends_from(pid: int) -> bool:
    """Whether this process was started by that one, or by what that one started."""
    return pid in {parent.pid for parent in psutil.Process().parents()}


@functools.cache
def end_with(pid: int) -> None:
    """End this process as soon as that one has, however it was killed: nothing may go on alone."""
    threading.Thread(target=_watch, args=(pid,), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    while alive(pid):
        time.sleep(CHECK_S)
    os._exit(os.EX_TEMPFAIL)  # files are never half written, see dpn.files
