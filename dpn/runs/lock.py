"""A lock on a folder that ends with its process, so a killed process never looks alive."""

import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive `flock`, which forked child processes do not hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock of an existing folder; returns False if another process holds it."""
        self._file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        # Forked data workers would hold the lock after their parent was killed.
        os.register_at_fork(after_in_child=self.release)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError as problem:
            log.warning(
                "%s: no file locks (%s); only the heartbeat guards it.",
                self.folder,
                problem,
            )
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
