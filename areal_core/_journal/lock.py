"""One process at a time has a journal."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from areal_core.errors import JournalError

_TRIED_AGAIN_S = 0.05


class DirectoryLock:
    """A lock file with the number of the process that holds it.

    The lock ends with the process, or when this is collected.
    """

    _descriptor: int | None = None  # also where a Ctrl-C came before __init__, for __del__

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = (0, 0)
        """Device and inode of what was locked."""

    def __del__(self) -> None:
        self.release()

    def acquire(self, patience_s: float = 0.0) -> None:
        """Take the lock; while another has it, try again for *patience_s* seconds.

        Raises JournalError when that was in vain, OSError when there can be no such file.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._try_to_acquire()
            except JournalError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(left, _TRIED_AGAIN_S))
            else:
                return

    def _try_to_acquire(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # a full disk: the number is only for the message
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = _described_holder(descriptor)
            os.close(descriptor)
            raise JournalError(f"the journal in {self._path.parent} is in use by {holder}") from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._file = descriptor, _file_of(descriptor)
        _held.add(self)

    def has(self, file: tuple[int, int]) -> bool:
        """Return whether it holds the lock of *file*."""
        return self._descriptor is not None and self._file == file

    def release(self) -> None:
        """Give the lock back, in the process that took it; in a forked child only its share in it."""
        # Not by LOCK_UN, which would take it from the parent of a forked child as well.
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _described_holder(descriptor: int) -> str:
    """Return who has the lock, and what to do. A number alone may be that of a process in a container."""
    file = _file_of(descriptor)
    if any(lock.has(file) for lock in list(_held)):
        return "this process: destroy() the executor that has it, or give each a directory of its own"
    number = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
    return f"process {number}; end that first, or give each process a directory of its own"


def _file_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
