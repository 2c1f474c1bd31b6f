"""One process at a time has a journal."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from areal_core.errors import JournalError


class DirectoryLock:
    """A lock file with the number of the process that holds it. The lock ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises JournalError when another has it, OSError when there can be no such file."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            with suppress(OSError):  # a full disk: the number is only for the message
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise JournalError(
                f"the journal in {self._path.parent} is in use by process {holder}; end that first, or give "
                "each process a directory of its own"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back, in the process that took it; in a forked child only its share in it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
