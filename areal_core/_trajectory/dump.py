"""Write trajectories to files as JSON, beside the event loop: `TrajectoryDump`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from areal_core import _process
from areal_core._checks import check_integer
from areal_core._log import get_logger
from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate
from areal_core._runner.passing import start_passing, to_the_end
from areal_core._trajectory.arrays import copy_of, is_array

_RECORD_BYTES = 2048  # what a record takes besides its arrays: only to bound those without any
_JOIN_S = 5.0  # for a thread that has nothing more to do


class _Waiting(NamedTuple):
    version: int
    record: dict[str, Any]
    size: int
    until: int
    """The size of this one and of all that waited before it since the last time nothing did."""


class TrajectoryDump:
    """Append records to ``<directory>/<version>.jsonl``, one line of JSON each.

    A record is a mapping of whatever JSON has words for, and of NumPy arrays and torch tensors, which become
    lists. NaN becomes null; of an object that JSON does not know only the name of its type is written. The
    executor's have task_id, data_id, version (at which it was delivered), start_version, origin (the oldest
    version of tokens that are trained), is_eval, seconds, and trajectory.

    Writing is left to a thread, in the order of the calls, and holds up nobody. A record is dropped when
    with it more than *max_waiting_bytes* of arrays would wait; alone it may. One that cannot be written is
    lost. Both are counted, and logged at the 1st, 2nd, 4th, 8th, ... time. A line that a crash or a full
    disk cut short stays, and the next record begins on a line of its own: readers skip what is no JSON.

    The directory is made at the first write; files are their owner's alone to read. Processes that write at
    the same time want directories of their own. `close` it, or use it as a context manager; what still waits
    when the interpreter exits is written first. A forked child has nothing of it: make another one there.

    A Ctrl-C in any of the methods leaves no lock held, and each record written whole or not at all.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_waiting_bytes: int = 256 * 2**20) -> None:
        self._directory = Path(directory)
        self._most = check_integer("max_waiting_bytes", max_waiting_bytes, least=1)
        self._log = get_logger()
        self._home = _process.home()
        self._lock = threading.RLock()  # a signal handler may write, too
        # It guards all below. What waits changes by one call of C code at a time, so that it is always whole.
        self._waiting: deque[_Waiting] = deque()
        """Its first is being written, and leaves when that is over."""
        self._thread: threading.Thread | None = None
        """Writes what waits, and ends when nothing does. None: there is none, and nothing waits."""
        self._drained: list[Gate] = []
        """Opened when nothing waits."""
        self._closed = False
        self.written = 0
        """How many records are in their files."""
        self.dropped = 0
        """How many were dropped: because too much was waiting, or at `close`, or after it, or at exit."""
        self.failed = 0
        """How many could not be written."""

    def __enter__(self) -> TrajectoryDump:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def write(self, version: int, record: Mapping[str, Any]) -> None:
        """Have *record* appended to the file of *version*. Never waits for a file, and raises nothing.

        Its arrays are copied at once; nothing else in it may be changed afterwards. Any thread may call.
        """
        if self._home is not _process.home():
            return
        try:
            size = _RECORD_BYTES + _bytes_of(record)
            refusal = self._refusal(size) or self._take(check_integer("version", version), record, size)
        except Exception as error:
            self._count_failed(version, error)
        else:
            if refusal is not None:
                self._count_dropped(1, refusal)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits to be written; return False if it still did after *timeout* seconds."""
        if self._home is not _process.home():
            return True
        drained = Gate()
        with self._lock:
            if not self._waiting:
                return True
            self._drained.append(drained)
        return drained.wait(timeout)

    def close(self, timeout: float | None = 10.0) -> None:
        """Take no more records, and write those that wait; drop what is left after *timeout* seconds."""
        if self._home is not _process.home():
            return
        self._closed = True
        thread = self._thread
        done, late = self.flush(timeout), 0
        with self._lock:
            while len(self._waiting) > 1:  # the first one is being written
                self._waiting.pop()
                late += 1
        if late:
            self._count_dropped(late, f"close gave them {timeout} s")
        if done and thread is not None:
            thread.join(_JOIN_S)

    def _refusal(self, size: int) -> str | None:
        """Return why a record of *size* cannot wait, if it cannot."""
        with self._lock:
            if self._closed:
                return "closed"
            if self._waiting and self._waiting_bytes() + size > self._most:
                return f"more than max_waiting_bytes={self._most} would be waiting"
        return None

    def _take(self, version: int, record: Mapping[str, Any], size: int) -> str | None:
        """Let a copy of *record* wait to be written; return why not, if not."""
        copied = _copied(record)
        with self._lock:
            if self._thread is None:
                try:
                    exit_hook.refuse_if_over()
                except RuntimeError as error:
                    return str(error)
                thread = start_passing(self._drain, "areal-dump")  # waits for the lock, and finds this record
                if thread is None:
                    return "the process is out of threads"
                self._thread = thread
            until = self._waiting[-1].until if self._waiting else 0
            self._waiting.append(_Waiting(version, copied, size, until + size))
        return None

    def _waiting_bytes(self) -> int:
        first = self._waiting[0]
        return self._waiting[-1].until - first.until + first.size

    def _drain(self) -> None:
        """Write what waits, in a thread where no Ctrl-C comes."""
        with self._lock:
            if self._thread is None:  # a Ctrl-C came before it was noted
                self._thread = threading.current_thread()
            if self._thread is not threading.current_thread():
                return
        while (waiting := self._next()) is not None:
            self._write(waiting)
            with self._lock:
                self._waiting.popleft()

    def _next(self) -> _Waiting | None:
        """Return what is to be written now; where there is nothing, tell who waits for that, and be over."""
        with self._lock:
            if self._waiting:
                return self._waiting[0]
            self._thread = None
            drained, self._drained = self._drained, []
        for gate in drained:
            gate.open()
        return None

    def _write(self, waiting: _Waiting) -> None:
        try:
            line = msgspec.json.encode(waiting.record, enc_hook=_plain)
            _append(self._path(waiting.version), line)
        except Exception as error:
            self._count_failed(waiting.version, error)
        else:
            self.written += 1  # by this thread alone

    def _path(self, version: object) -> Path:
        return self._directory / f"{version}.jsonl"

    def _count_failed(self, version: object, error: Exception) -> None:
        with self._lock:
            self.failed += 1
            failed = self.failed
        if _is_told(failed - 1, failed):
            path = str(self._path(version))
            words = f"{type(error).__name__}: {error}"  # a repr may show texts
            _tell(lambda: self._log.error("trajectory_not_dumped", path=path, error=words, failed=failed))

    def _count_dropped(self, count: int, why: str) -> None:
        with self._lock:
            before = self.dropped
            self.dropped += count
            dropped = self.dropped
        if _is_told(before, dropped):
            _tell(lambda: self._log.warning("trajectory_dump_dropped", why=why, dropped=dropped))


def _tell(log: Callable[[], object]) -> None:
    """Log where no Ctrl-C comes, which could leave a handler's lock held. One that raises costs the line."""
    with contextlib.suppress(Exception):
        to_the_end("areal-log", log)


def _is_told(before: int, after: int) -> bool:
    """Return whether a counter has come to the next power of two: one that runs fast fills no log."""
    return after.bit_length() > before.bit_length()


def _bytes_of(record: Mapping[str, Any]) -> int:
    return sum(
        _bytes_of(value) if isinstance(value, dict) else value.nbytes if is_array(value) else 0
        for value in record.values()
    )


def _copied(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _copied(value) if isinstance(value, dict) else copy_of(value) if is_array(value) else value
        for key, value in record.items()
    }


def _plain(value: Any) -> Any:
    """Return what JSON has words for instead of *value*."""
    if isinstance(value, np.generic):
        return value.item()
    if not is_array(value):
        return f"<{type(value).__name__}>"
    if value.ndim < 2:
        return value.tolist()
    return msgspec.Raw(b"[" + b",".join(map(_encoded, value)) + b"]")


def _encoded(row: Any) -> bytes:
    """Encode one row, then let the loop's thread run: it would wait for as long as all rows take."""
    encoded = msgspec.json.encode(row.tolist(), enc_hook=_plain)
    time.sleep(0)
    return encoded


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path, "ab+", opener=_open_private) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line)
        file.write(b"\n")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
