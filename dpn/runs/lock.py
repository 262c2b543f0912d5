"""A lock on a folder that ends with its process, so a killed process never looks alive."""

import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive `flock`, which forked child processes do not hold.

    Attributes:
        works: Whether the file system has file locks, so that this one is no one else's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.works = True
        self._file: int | None = None
        self._place: os.stat_result | None = None

    def acquire(self) -> bool:
        """Take the lock of an existing folder; returns False if another process holds it."""
        self._file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        # Forked data workers would hold the lock after their parent was killed.
        os.register_at_fork(after_in_child=self.release)
        self._place = self.folder.stat()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError as problem:
            self.works = False
            log.warning(
                "%s: no file locks (%s); only the heartbeat guards it.",
                self.folder,
                problem,
            )
        return True

    @property
    def lost(self) -> bool:
        """Whether the folder was removed or replaced after its lock was acquired."""
        if self._file is None or self._place is None:
            return False
        try:
            return not os.path.samestat(self._place, self.folder.stat())
        except (FileNotFoundError, NotADirectoryError):
            return True

    def now(self) -> float:
        """The time in seconds since the epoch by the clock of the folder's file system."""
        assert self._file is not None
        os.utime(self._file)
        return os.fstat(self._file).st_mtime

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
