"""The tables of the file, and connections to it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from areal_core._journal.rows import Head, Kind, Settled, seal
from areal_core._journal.wal import PAGE
from areal_core.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMAT = 1
"""Of the file; a later one is refused."""

_MARK = int.from_bytes(b"arl\0", "big")
"""Added to the format it is the ``application_id``: so a flipped bit makes the format no other."""

_WAL_LIMIT = 64 * 2**20  # bytes that the write-ahead log may keep after a large transaction

_PATIENCE_S = 5.0  # with others who have a lock of the file
_NAP_S = 0.01

_LOG = "(row INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB)"
_DONE = "(row INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, head BLOB NOT NULL)"
_TABLES = {
    name: f"CREATE TABLE {name} {columns}"
    for name, columns in (("log", _LOG), ("log_copy", _LOG), ("done", _DONE), ("done_copy", _DONE))
}
"""How each is made, and so it stands in the file, word for word."""

# Of `done`, of the commits, which list what was delivered, and of what takes a delivery back there are two,
# in pages of their own: no other row that is lost has what was trained given out again, or the rest left out.
_TWICE = frozenset({Kind.COMMITTED, Kind.RETURNED, Kind.REOPENED})

_NOT_THE_FILE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether *error* is about what is in the file; else it is about the disk, or the permissions."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in _NOT_THE_FILE


def create(path: Path) -> None:
    """Make an empty file that only its owner may read; SQLite's others beside it take its mode."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)  # whatever the umask left of it
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in *directory* on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make *directory*, for its owner alone, and what is missing above it, and have the names on the disk."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        with suppress(PermissionError):  # of one that may be written and not be read
            sync_directory(one.parent)


def connect(path: Path, *, mode: str = "WAL") -> sqlite3.Connection:
    """Open the file and make what is missing in it. Any thread may use the connection, one at a time.

    Raises JournalError for a file of somebody else's, or of a later version; sqlite3.Error for a damaged one.
    """
    connection = _open(path, isolation_level=None, check_same_thread=False)
    try:
        _check_whose(path, connection)  # before anything in it is changed
        for pragma in (f"page_size={PAGE}", "secure_delete=ON", f"journal_mode={mode}", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT}")
        with transaction(connection):
            _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def check_whose(path: Path) -> None:
    """Raise like `connect`, by what is in the file without its write-ahead log, which SQLite is not shown."""
    connection = _open(f"{path.absolute().as_uri()}?immutable=1", uri=True)
    try:
        _check_whose(path, connection)
    finally:
        connection.close()


def count_frames(connection: sqlite3.Connection, path: Path) -> int:
    """Return how many frames of the write-ahead log SQLite takes, having put into the file what it could.

    Raises JournalError when another process was at that all the time.
    """
    deadline = time.monotonic() + _PATIENCE_S
    # -1: another is at it; SQLite itself does not wait for that.
    while (frames := connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]) < 0:
        if time.monotonic() >= deadline:
            raise JournalError(
                f"another process was in a checkpoint of {path} for {_PATIENCE_S:g} s; "
                "end what writes its log into it, such as a backup, and try again"
            )
        time.sleep(_NAP_S)
    return int(frames)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Have all that is written inside durable at the end, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself has ended it after some errors
            connection.execute("ROLLBACK")
        raise


def insert(connection: sqlite3.Connection, head: Head, body: bytes | None) -> None:
    """Add a row to the log, or replace it; twice if what it says must not be lost."""
    values = (head.row, seal(head), body)
    connection.execute("INSERT OR REPLACE INTO log VALUES (?, ?, ?)", values)
    if head.kind in _TWICE:
        connection.execute("INSERT OR REPLACE INTO log_copy VALUES (?, ?, ?)", values)


def insert_settled(connection: sqlite3.Connection, settled: Settled) -> None:
    """Add a row of keys that are done, twice."""
    values = (settled.row, settled.epoch, seal(settled))
    connection.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?)", values)
    connection.execute("INSERT OR REPLACE INTO done_copy VALUES (?, ?, ?)", values)


def delete(connection: sqlite3.Connection, rows: Iterable[int]) -> None:
    """Delete rows of the log by their numbers."""
    numbers = [(row,) for row in rows]
    for table in ("log", "log_copy"):
        connection.executemany(f"DELETE FROM {table} WHERE row = ?", numbers)


def _open(database: Path | str, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(database, timeout=_PATIENCE_S, **options)
    # The name of a table that is no UTF-8 is somebody else's, and no damage.
    connection.text_factory = lambda text: text.decode(errors="replace")
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    if not connection.execute("PRAGMA user_version").fetchone()[0]:
        for statement in _TABLES.values():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id={_MARK + _FORMAT}")
        connection.execute(f"PRAGMA user_version={_FORMAT}")


def _check_whose(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = _tables(connection)
    if tables and _TABLES.keys().isdisjoint(tables):
        raise JournalError(
            f"{path} is a database of something else, with {min(tables)!r}; give another directory"
        )
    if tables and version > _FORMAT and mark == _MARK + version:
        raise JournalError(
            f"{path} was written by a later version of areal_core: its format is {version}, and this one "
            f"reads {_FORMAT}; use that version, or another directory"
        )
    is_new = not tables and version == mark == 0
    # The first files had no mark. A table that says otherwise how it was made has its columns by other names,
    # or by another meaning, and all that is in it would seem to be nothing.
    if not is_new and (
        not _TABLES.items() <= tables.items() or version != _FORMAT or mark not in (0, _MARK + _FORMAT)
    ):
        raise sqlite3.DatabaseError(
            f"the file says version {version}, mark {mark} and {sorted(tables.items())}"
        )


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the names of the tables, and how each was made. Raises sqlite3.DatabaseError."""
    # Damage may have made either something else than a text.
    query = "SELECT CAST(name AS TEXT), CAST(sql AS TEXT) FROM sqlite_master WHERE type = 'table'"
    try:
        return {str(name): str(sql) for name, sql in connection.execute(query)}
    except UnicodeDecodeError as error:  # of what SQLite says, which quotes what is damaged
        raise sqlite3.DatabaseError(f"the file does not tell its tables: {error}") from error
