"""A file that says how a run is doing, for those who look from outside: `StatusFile`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from areal_core._executor.snapshot import Snapshot
from areal_core._json import json_of
from areal_core._observe.rates import Rates
from areal_core._observe.runs import (
    Status,
    file_name,
    own_directory,
    process_start,
    remove_old,
    this_host,
    unfinished,
)


class StatusFile:
    """Writes the latest snapshot to a file, again and again. Whoever reads has all of one, or of another.

    *path* None is one in the user's runtime directory, with a name that has *number* in it. The file is its
    owner's alone. Not for several threads.
    """

    def __init__(self, path: Path | None, number: int) -> None:
        self._number = number
        self._given = path
        self._host = this_host()
        self._pid = os.getpid()
        self._process_start = process_start(self._pid)
        self.path: Path | None = path
        """Where it is; None: it was not written so far."""

    def write(self, snapshot: Snapshot, rates: Rates) -> None:
        """Write the file anew. Raises OSError."""
        status = Status(
            host=self._host,
            process_start=self._process_start,
            tokens_per_s=rates.tokens_per_s,
            accepted_per_s=rates.accepted_per_s,
            tokens_history=tuple(round(one, 1) for one in rates.tokens_history),
            left_s=tuple(map(rates.left_s, snapshot.waits)),
            servers=rates.servers,
            trainer_busy_s=rates.asking.busy_s,
            trainer_waits=rates.asking.waiting_share,
            held=rates.lately.held(),
            snapshot=snapshot,
        )
        if self.path is None:
            self.path = self._own_path(snapshot.program)
        _replace(self.path, unfinished(self.path, self._number), json_of(status))

    def _own_path(self, program: str) -> Path:
        directory = own_directory()
        remove_old(directory)
        return directory / file_name(program, self._pid, self._number)


def _replace(path: Path, new: Path, data: bytes) -> None:
    """Have *data*, and nothing else, be in *path*, at one stroke; it is in *new* before."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        new.unlink()  # of one with this id that was killed while it wrote
    # Nobody else's file is written to, whatever was put there a moment ago.
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write_all(file, data)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    new.replace(path)


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
