"""A lock on a folder that dies with its process, so that a killed one never looks alive."""

import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive `flock`; not held by what its process forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock of a folder that exists; False if another process has it."""
        self._file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        # Forked data workers would keep the lock alive after their parent was killed.
        os.register_at_fork(after_in_child=self.release)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError as problem:
            log.warning("%s: no file locks (%s); the heartbeat has to do.", self.folder, problem)
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
