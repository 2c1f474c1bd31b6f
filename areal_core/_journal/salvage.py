"""A new file from the rows that are still found in a damaged one, which is kept beside it.

A kill at any point of it loses nothing: the new file is complete before the old one is touched, and a
complete one that has not taken its place yet does so the next time. The copies have names that the next one
overwrites until then: however often it is begun again, there is one pair of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from areal_core._journal.carving import carve
from areal_core._journal.keys import Keys
from areal_core._journal.records import ACCEPTED
from areal_core._journal.rows import (
    Head,
    Kind,
    Settled,
    add_settled,
    is_whole,
    open_head,
    open_settled,
    settled_of,
)
from areal_core._journal.schema import connect, create, insert, insert_settled, sync_directory, transaction
from areal_core._journal.wal import Wal

_COPY = ".damaged-new"  # until it has a number


class _Found:
    """Rows, each once."""

    def __init__(self) -> None:
        self.log: dict[int, tuple[Head, bytes | None]] = {}
        self.settled: dict[int, Keys] = {}
        self.damaged = 0

    def add(self, row: int, columns: list[int | bytes | None] | None) -> None:
        match columns:
            case [_, bytes() as sealed, body] if (head := open_head(row, sealed)) is not None:
                self._add_head(head, body)
            case [_, int(), bytes() as sealed] if (settled := open_settled(row, sealed)) is not None:
                add_settled(settled, self.settled.setdefault(settled.epoch, Keys()))
            case _:
                self.damaged += 1

    def _add_head(self, head: Head, body: object) -> None:
        kept: Head | None = head
        if not is_whole(head, body):
            self.damaged += 1
            kept, body = without_body(head), None
        if kept is None:
            return
        before, body_before = self.log.get(head.row, (None, None))
        found = kept, body if isinstance(body, bytes) else None
        if before is None:
            self.log[head.row] = found
        elif (before.kind, before.number) != (kept.kind, kept.number):
            if kept.kind is Kind.RETURNED:  # of a row that was changed: what was taken back is not in force
                self.log[head.row] = found
        elif kept.kind is Kind.COMMITTED:  # the one that was written later says more
            both = tuple(dict.fromkeys(before.keys + kept.keys))
            self.log[head.row] = msgspec.structs.replace(kept, keys=both), None
        elif body_before is None:
            self.log[head.row] = found

    def note(self, kept: str) -> None:
        """Add the row that says that they are all that was found in what is *kept* under this name."""
        row = 1 + max(self.log, default=0)
        self.log[row] = Head(row, Kind.SALVAGED, (), max(1, self.damaged), kept), None

    def rows_of_settled(self) -> list[Settled]:
        return [settled_of(row, epoch, keys) for row, (epoch, keys) in enumerate(self.settled.items(), 1)]


def without_body(head: Head) -> Head | None:
    """Return what is left of a row whose body is damaged; None: nothing."""
    if head.kind is Kind.ENDED and head.status == ACCEPTED:
        return None
    return msgspec.structs.replace(head, size=None, check=b"")


def beside(path: Path, suffix: str) -> Path:
    """Return the path that has *suffix* after the name."""
    return path.with_name(path.name + suffix)


def salvage(path: Path, log: Wal, close: Callable[[], object]) -> None:
    """Put a file with the readable rows of *path* and of its *log* in its place.

    *close* is called when copies of both are on the disk: where SQLite was shown them, it moves what it takes
    of the log to *path* then, if it has not yet, and deletes the log. The new file has a row that says what
    became of the old one. Raises OSError and sqlite3.Error: *path* and log are as they were then, or the
    copies are there, until this is called again.
    """
    copies = copy, copy_of_log = beside(path, _COPY), beside(path, f"{_COPY}-wal")
    try:
        for old in copies:
            old.unlink(missing_ok=True)
        database = path.read_bytes()
        keep(copy, database)
        if log.content:
            keep(copy_of_log, log.content)
    except BaseException:
        for begun in copies:
            begun.unlink(missing_ok=True)
        raise
    close()
    found = _Found()
    for carved in carve(database, log.pages(database)):
        found.add(*carved)
    found.note(_next_copy(path).name)
    _write(found, beside(path, ".new"))
    beside(path, ".new").rename(beside(path, ".salvaged"))
    sync_directory(path.parent)
    finish(path)


def finish(path: Path) -> None:
    """Put a salvaged file in its place, if there is one that is not there yet."""
    salvaged = beside(path, ".salvaged")
    if not salvaged.exists():
        return
    kept = _next_copy(path)
    for suffix in ("-wal", ""):  # the log first: as long as the other has no number, it is this one
        copy = beside(path, _COPY + suffix)
        if copy.exists():
            copy.rename(beside(kept, suffix))
    sync_directory(path.parent)
    for suffix in ("-wal", "-shm"):  # they belong to the old one, and would be taken for the new one's
        beside(path, suffix).unlink(missing_ok=True)
    sync_directory(path.parent)
    salvaged.replace(path)
    sync_directory(path.parent)


def keep(path: Path, content: bytes) -> None:
    """Have *content* on the disk, for its owner alone: it may soon be the only original."""
    path.touch(0o600)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def _next_copy(path: Path) -> Path:
    """Return the name that the next copy gets once there is a file in the place of what it is of."""
    number = next(n for n in range(1, 2**31) if not beside(path, f".damaged-{n}").exists())
    return beside(path, f".damaged-{number}")


def _write(found: _Found, path: Path) -> None:
    for old in (path, beside(path, "-journal")):
        old.unlink(missing_ok=True)
    create(path)
    connection = connect(path, mode="DELETE")
    try:
        with transaction(connection):
            for _, (head, body) in sorted(found.log.items()):
                insert(connection, head, body)
            for settled in found.rows_of_settled():
                insert_settled(connection, settled)
    finally:
        connection.close()
