"""What a restart finds: `Reading`."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

import msgspec

from areal_core._journal.keys import Keys
from areal_core._journal.records import Finished, Pending, Recovered
from areal_core._journal.replay import Commit, Entry, History
from areal_core._journal.rows import Head, Kind, add_settled, is_whole, open_head, open_settled
from areal_core._journal.salvage import without_body
from areal_core._journal.schema import delete, insert
from areal_core.errors import JournalError

STEPS_KEPT = 2


class Log(NamedTuple):
    """The heads of all rows, in the order they were written."""

    heads: dict[int, Head]
    damaged: list[int]
    """Rows whose heads cannot be read."""


def read_log(connection: sqlite3.Connection) -> Log:
    """Read the heads: not their bodies, which are most of the file."""
    heads: dict[int, Head] = {}
    damaged: list[int] = []
    for table in ("log", "log_copy"):
        for row, sealed in connection.execute(f"SELECT row, head FROM {table}"):
            head = open_head(row, sealed)
            if head is None:
                damaged.append(row)
            else:
                heads[row] = head
    return Log(dict(sorted(heads.items())), damaged)


def read_settled(connection: sqlite3.Connection) -> tuple[Keys, int]:
    """Return the keys that are done for good, and how many rows of them are damaged."""
    keys, damaged, seen = Keys(), 0, set[bytes]()
    for table in ("done", "done_copy"):
        for row, sealed in connection.execute(f"SELECT row, head FROM {table}"):
            settled = open_settled(row, sealed)
            if settled is None:
                damaged += 1
            elif sealed not in seen:
                seen.add(sealed)
                add_settled(settled, keys)
    return keys, damaged


class Reading:
    """What is in the file, and what of it counts once a step to resume is chosen."""

    def __init__(self, log: Log, done: Keys, damaged: int) -> None:
        self._log = log
        self._done = done
        self._damaged = damaged + len(log.damaged)
        self._salvaged = [head for head in log.heads.values() if head.kind is Kind.SALVAGED]
        self._history = History()
        for head in log.heads.values():
            self._history.tell(head)
        self._commit = Commit(-1, 0)
        self._without_body: list[Head] = []

    def steps(self) -> list[int]:
        """Return the steps that can be resumed, ascending."""
        return [commit.step for commit in self._history.commits[-STEPS_KEPT:]]

    def choose(self, step: int | None, directory: Path) -> None:
        """Go on from *step*; None: from the beginning. Raises JournalError if that cannot be."""
        steps = self.steps()
        if step is None:
            if steps or self._done:  # done without a commit: those were lost
                raise JournalError(f"{directory} has the journal of an earlier run; {self._advice(steps)}")
            return
        if step not in steps:
            raise JournalError(f"the journal in {directory} cannot resume step {step}; {self._advice(steps)}")
        self._commit = next(commit for commit in self._history.commits if commit.step == step)

    def recovered(self, connection: sqlite3.Connection, directory: Path) -> Recovered:
        """Return what there is, with the bytes read and checked."""
        finished: list[tuple[tuple[int, int, int], Finished]] = []
        pending: list[Pending] = []
        live = self._live()
        for entry in sorted(live, key=lambda entry: entry.seen):
            data = self._body(connection, entry.data)
            result = self._body(connection, entry.result)
            if result is None:
                pending.append(Pending(entry.key, entry.epoch, data))
            else:
                again = entry.order is not None
                one = Finished(entry.key, entry.epoch, data, result, again)
                finished.append(((not again, *(entry.order or (entry.result or 0, 0))), one))
        finished.sort(key=lambda pair: pair[0])
        step = self._commit.step if self._commit.row else None
        ordered = tuple(one for _, one in finished)
        damaged = self._damaged + sum(head.number for head in self._salvaged)
        kept = tuple(directory / head.status for head in self._salvaged)
        return Recovered(step, self._done, ordered, tuple(pending), damaged, kept)

    def make_so(self, connection: sqlite3.Connection) -> None:
        """Give up what later runs did, and what is damaged, in the transaction that is open.

        What failed after the commit that is resumed needs no change: only lists of later commits have it.
        """
        delete(connection, [*self._log.damaged, *(head.row for head in self._salvaged)])
        for row in self._log.damaged:
            if (copy := self._log.heads.get(row)) is not None:
                insert(connection, copy, None)
        for head in self._without_body:
            if (left := without_body(head)) is None:
                delete(connection, [head.row])
            else:
                insert(connection, left, None)
        self._make_commits_so(connection)
        for head in self._log.heads.values():
            if head.kind is Kind.DELIVERED and head.row > self._commit.row:
                insert(connection, msgspec.structs.replace(head, kind=Kind.RETURNED), None)

    def _make_commits_so(self, connection: sqlite3.Connection) -> None:
        """Keep those that can be resumed; the first of them says from now on what older ones said."""
        older: tuple[bytes, ...] = ()
        for head in self._log.heads.values():
            if head.kind is not Kind.COMMITTED:
                continue
            if head.row <= self._commit.row and head.number in self.steps():
                # It may be there only once.
                insert(connection, msgspec.structs.replace(head, keys=older + head.keys), None)
                older = ()
            else:
                delete(connection, [head.row])
                older += head.keys

    def _advice(self, steps: list[int]) -> str:
        if steps:
            return f"give resume_from one of {steps}, or another directory to begin anew"
        if self._done:
            return "its commits are lost: move the directory away to begin anew"
        return "no step was committed: give resume_from=None, which goes on from the beginning"

    def _live(self) -> list[Entry]:
        """Move those that are done to the others that are, and return the rest."""
        entries = [entry for entry in self._history.entries.values() if entry.key not in self._done]
        self._done.update([entry.key for entry in entries if entry.is_done(self._commit.row)])
        return [entry for entry in entries if not entry.is_done(self._commit.row)]

    def _body(self, connection: sqlite3.Connection, row: int | None) -> bytes | None:
        if row is None:
            return None
        body = connection.execute("SELECT body FROM log WHERE row = ?", (row,)).fetchone()[0]
        if not is_whole(self._log.heads[row], body):
            self._damaged += 1
            self._without_body.append(self._log.heads[row])
            return None
        return bytes(body)
