"""A new file from the rows that are still found in a damaged one, which is kept beside it.

A kill at any point of it loses nothing: the new file is complete before the old one is touched, and a
complete one that has not taken its place yet does so the next time.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

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


class Salvaged(NamedTuple):
    """What became of a damaged file."""

    damaged: int
    """How many rows in it made no sense, at least 1."""
    kept: Path
    """The copy of it."""


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
        before = self.log.get(head.row)
        # Of a row that was changed both may be found: what was taken back is not in force.
        if kept is not None and (before is None or kept.kind is Kind.RETURNED):
            self.log[head.row] = kept, body if isinstance(body, bytes) else None

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


def salvage(path: Path, wal: bytes) -> Salvaged:
    """Put a file with the readable rows of *path* and of its log *wal* in its place; nobody may have it open.

    *wal* was read before SQLite saw it, which throws away what comes after the first damage in it. Raises
    OSError and sqlite3.Error, and leaves *path* as it is then.
    """
    number = next(n for n in range(1, 2**31) if not beside(path, f".damaged-{n}").exists())
    kept = beside(path, f".damaged-{number}")
    try:
        kept.touch(0o600)
        shutil.copyfile(path, kept)
        if wal:
            beside(kept, "-wal").touch(0o600)
            beside(kept, "-wal").write_bytes(wal)
        found = _Found()
        for carved in carve(kept.read_bytes(), wal):
            found.add(*carved)
        _write(found, beside(path, ".new"))
    except BaseException:
        for copy in (kept, beside(kept, "-wal")):
            copy.unlink(missing_ok=True)
        raise
    beside(path, ".new").rename(beside(path, ".salvaged"))
    sync_directory(path.parent)
    finish(path)
    return Salvaged(max(1, found.damaged), kept)


def finish(path: Path) -> None:
    """Put a salvaged file in its place, if there is one that is not there yet."""
    salvaged = beside(path, ".salvaged")
    if not salvaged.exists():
        return
    for suffix in ("-wal", "-shm"):  # they belong to the old one, and would be taken for the new one's
        beside(path, suffix).unlink(missing_ok=True)
    sync_directory(path.parent)
    salvaged.replace(path)
    sync_directory(path.parent)


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
