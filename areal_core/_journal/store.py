"""The directory of a journal: `Store`."""

from __future__ import annotations

import atexit
import os
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol, Self

from areal_core import _process
from areal_core._journal import compaction
from areal_core._journal.crash_points import reached
from areal_core._journal.lock import DirectoryLock
from areal_core._journal.reading import Reading, read_log, read_settled
from areal_core._journal.records import (
    COUNTED_BY_COMMITS,
    Committed,
    Delivered,
    Ended,
    Record,
    Recovered,
    Reopened,
    Returned,
)
from areal_core._journal.rows import head_of
from areal_core._journal.salvage import beside, finish, keep, salvage
from areal_core._journal.schema import (
    check_whose,
    connect,
    count_frames,
    create,
    insert,
    is_damage,
    make_directory,
    transaction,
)
from areal_core._journal.wal import Wal
from areal_core.errors import JournalError

_NAME = "journal.sqlite"

# Of the file's header: which version may write it, and which read it. The second has a write-ahead log.
_KIND, _WAL_KIND = slice(18, 20), b"\2\2"


class User(Protocol):
    """Who was given a store."""

    def is_at_work(self) -> bool:
        """Return whether a thread of its own may be using the store now."""


class Store:
    """The file of a journal, in a directory of its own: what is appended is durable when `append` returns.

    ``open`` it, `read` it, then `append`; ``close`` it, or use it as a context manager. Threads may use it
    one at a time. In a forked child it does nothing but refuse. All that goes wrong with the disk or the
    file is a JournalError.

    Once a `Writer` has it, ``close`` does nothing, and the writer closes it: its thread may still be using
    the connection, which SQLite does not survive.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._path = self._directory / _NAME
        self._lock = DirectoryLock(self._directory / "journal.lock")
        self._connection: sqlite3.Connection | None = None
        self._user: User | None = None
        """Who closes it."""
        self._reading: Reading | None = None
        """What `read` found and the next `append` has yet to make so."""
        self._is_read = False
        self._next = 1
        self._last_step: int | None = None
        self._uncommitted: dict[bytes, None] = {}
        """Keys that the next commit says are done: delivered or failed since the last, in that order."""
        self._file = (0, 0)
        """Device and inode of what was opened."""
        self.torn: Path | None = None
        """A copy of the write-ahead log that was found, if its end is torn: that counts for nothing. If
        it was damaged instead, this is all that is left of it. The next one overwrites it."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {str(self._path)!r}>"

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def last_step(self) -> int | None:
        """The last step that was committed, of those that count after `read`."""
        return self._last_step

    def open(self, patience_s: float = 0.0) -> None:
        """Make the directory if there is none, take its lock, and open the file; salvage a damaged one.

        Waits *patience_s* seconds for who has the lock. Raises JournalError when somebody has it then, or
        when it cannot be used.
        """
        with self._told("cannot be used"):
            make_directory(self._directory)
            self._lock.acquire(patience_s)
        self._user = None
        _open_ones.add(self)
        try:
            with self._told("cannot be used"):
                self._open_file()
        except BaseException:
            self._close()
            self._lock.release()
            raise

    def close(self) -> None:
        """Close the file and give the lock back. Does nothing a second time, and once a writer has it."""
        if self._user is None:
            self._close()

    def give_to(self, user: User) -> None:
        """Have *user* alone use it from now on, and close it with `close_for`."""
        self._user = user

    def close_for(self, user: User) -> None:
        """Close what *user* was given and uses no more. Raises JournalError if that fails."""
        if self._user is user:  # who it stays, so that nobody frees the directory meanwhile
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        _open_ones.discard(self)
        if connection is None:  # another thread closes it, or did
            return
        try:
            with self._told("could not be closed"):
                connection.close()
        finally:
            self._lock.release()

    def _close_at_exit(self) -> None:
        # A thread for which a second Ctrl-C has the interpreter not wait may be using it. Unclosed the file
        # is as whole.
        if self._user is None or not self._user.is_at_work():
            self._close()

    def steps(self) -> list[int]:
        """Return the steps that can be resumed, ascending: the last two that were committed."""
        with self._told("cannot be read"):
            return self._read().steps()

    def read(self, resume_from: int | None = None) -> Recovered:
        """Return what there is for who goes on from step *resume_from*; None: from the beginning.

        Changes nothing: what later runs did is given up by the first `append`. Raises JournalError unless
        *resume_from* can be resumed; with None, where a step was committed.
        """
        with self._told("cannot be read"):
            reading = self._read()
            reading.choose(resume_from, self._directory)
            recovered = reading.recovered(self._opened(), self._directory)
        self._reading, self._is_read = reading, True
        self._uncommitted, self._last_step = {}, resume_from
        return recovered

    def append(self, records: Iterable[Record]) -> None:
        """Add *records*: all of them are durable on return, or none is in the journal.

        Raises JournalError, with a commit also when the file is no more where it was opened; ValueError for
        a commit whose step is not above the last, and before `read`.
        """
        reached("before_append")
        if not self._is_read:
            raise ValueError("append before read; read first, which says where the journal is gone on with")
        some = list(records)
        last_step = self._checked_steps(some)
        uncommitted = dict(self._uncommitted)
        with self._told("could not be written"), transaction(self._opened()):
            self._make_so()
            for place, record in enumerate(some):
                self._insert(self._next + place, record, uncommitted)
                reached("after_append")
            if last_step != self._last_step:
                self._check_place()
            reached("before_fsync")
        self._reading = None
        self._next += len(some)
        self._uncommitted, committed, self._last_step = uncommitted, last_step != self._last_step, last_step
        reached("after_fsync")
        if committed:
            reached("after_commit")

    def compact(self) -> int:
        """Forget results and data of what was delivered before the commit before the last.

        Of these keys only the keys are kept, and of those that were settled without being accepted; before
        the first commit, all is. Rows that later ones have made superfluous go at any time. Return how many
        rows are left in the log.
        """
        if self._reading is not None:  # it would decide by what is given up
            return 0
        with self._told("could not be compacted"), transaction(self._opened()):
            left = compaction.compact(self._opened())
            reached("in_compaction")
        return left

    def _read(self) -> Reading:
        connection = self._opened()
        settled = read_settled(connection)
        return Reading(read_log(connection), *settled)

    def _make_so(self) -> None:
        if self._reading is not None:
            self._reading.make_so(self._opened())

    def _insert(self, row: int, record: Record, uncommitted: dict[bytes, None]) -> None:
        head, body = head_of(row, record, uncommitted)
        insert(self._opened(), head, body)
        match record:
            case Delivered():
                uncommitted.update(dict.fromkeys(head.keys))
            case Ended(status=status) if status in COUNTED_BY_COMMITS:
                uncommitted[head.keys[0]] = None
            case Ended() | Reopened() | Returned():
                for key in head.keys:
                    uncommitted.pop(key, None)
            case Committed():
                uncommitted.clear()

    def _check_place(self) -> None:
        """Raise JournalError if the file was taken away: what is written to it is gone with it."""
        try:
            is_there = _identity(self._path) == self._file
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        if not is_there:
            raise JournalError(
                f"{self._path} was deleted or replaced while it was in use; make another executor with "
                f"resume_from={self._last_step} once it is back in its place, or with resume_from=None and "
                "an empty directory"
            )

    def _checked_steps(self, records: Sequence[Record]) -> int | None:
        last = self._last_step
        for record in records:
            if isinstance(record, Committed):
                check_step(record.step, last)
                last = record.step
        return last

    def _open_file(self) -> None:
        finish(self._path)
        log = Wal(_content(beside(self._path, "-wal")))
        if not self._path.exists():
            create(self._path)
        self._path.chmod(0o600)
        self.torn = None
        try:
            self._look_at(log)
            self._connect(log)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            salvage(self._path, log, self._let_go)
            self._connect(Wal(b""))
        self._file = _identity(self._path)
        # In either there may be a row that the other has lost.
        last = "SELECT max(row) FROM (SELECT row FROM log UNION ALL SELECT row FROM log_copy)"
        self._next = 1 + (self._opened().execute(last).fetchone()[0] or 0)

    def _look_at(self, log: Wal) -> None:
        """Raise sqlite3.Error if *log* is damaged; keep it if it has an end that SQLite does not take.

        Once SQLite is shown it, it deletes all that it does not take.
        """
        if log.content and self._path.stat().st_size == 0:
            raise sqlite3.DatabaseError("the file is empty, and its write-ahead log is not")
        if not log.is_damaged and not log.has_torn_end:
            return
        is_damaged = log.is_damaged or log.is_in(self._path.read_bytes())
        with nullcontext() if is_damaged else suppress(sqlite3.Error):  # what the log has may put it right
            check_whose(self._path)
        if is_damaged:
            raise sqlite3.DatabaseError("the write-ahead log is damaged")
        keep(beside(self._path, ".torn-wal"), log.content)
        self.torn = beside(self._path, ".torn-wal")

    def _connect(self, log: Wal) -> None:
        """Open the file, beside which *log* was found, and look at all of it. Raises sqlite3.Error."""
        connection = self._connection = connect(self._path)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if (found, mode) != ("ok", "wal"):
            raise sqlite3.DatabaseError(f"{found}; {mode}")
        known = count_frames(connection, self._path)
        # Another process may have put all of it into the file since, and emptied it.
        if known < log.frames and log.pages(self._path.read_bytes()):
            raise sqlite3.DatabaseError(f"SQLite takes {known} of {log.frames} frames of the write-ahead log")
        # Nothing is in the log that is not in the file; where damage hit it now, half of it might count.
        # Nobody who reads it from outside is waited for: then it stays until the next time.
        patience_ms = connection.execute("PRAGMA busy_timeout").fetchone()[0]
        connection.execute("PRAGMA busy_timeout=0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute(f"PRAGMA busy_timeout={patience_ms}")
        self._check_kind()

    def _check_kind(self) -> None:
        """Raise sqlite3.DatabaseError if the file says of itself that it is not for writing to."""
        with self._path.open("rb") as file:
            kind = file.read(_KIND.stop)[_KIND]
        if kind != _WAL_KIND:
            raise sqlite3.DatabaseError(f"the file says that it is of kind {kind.hex()}")

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise JournalError(f"the journal in {self._directory} is closed, or another process's")
        return self._connection

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, MemoryError) as error:
            raise JournalError(f"the journal in {self._directory} {what}: {error}") from error

    def _leave_to_parent(self) -> None:
        # Closing a connection that came with a fork may end the parent's.
        _process.pin(self._connection)
        self._connection = self._user = None
        self._lock.release()


def check_step(step: int, last: int | None) -> None:
    """Raise ValueError unless *step* comes after the *last* that was committed."""
    if last is not None and step <= last:
        raise ValueError(
            f"step={step} is not above {last}, the last that was committed; commit each step once, and to go "
            f"back make another executor with resume_from={step}"
        )


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:  # another process, which closed the file last, has just deleted it
        return b""


_open_ones: weakref.WeakSet[Store] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for store in list(_open_ones):
        store._leave_to_parent()
    _open_ones.clear()


def _close_all() -> None:
    for store in list(_open_ones):
        with suppress(Exception):
            store._close_at_exit()


_process.call_in_child(_leave_all_to_parent)
atexit.register(_close_all)  # after the threads of writers were joined
