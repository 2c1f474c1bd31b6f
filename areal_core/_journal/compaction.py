"""Forget what no resume can ask for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from areal_core._journal.keys import Keys
from areal_core._journal.reading import STEPS_KEPT, read_log
from areal_core._journal.records import COUNTED_BY_COMMITS
from areal_core._journal.replay import Entry, History
from areal_core._journal.rows import Head, Kind, add_settled, by_epoch, open_settled, settled_of
from areal_core._journal.schema import delete, insert_settled

_MOST_ROWS = 64  # of an epoch under way: each commit adds one


def compact(connection: sqlite3.Connection) -> int:
    """Do it in the transaction that is open, at a cost that goes with the rows there are.

    Return how many of them are left.
    """
    history = History()
    heads = read_log(connection).heads
    for head in heads.values():
        history.tell(head)
    oldest = history.commits[-STEPS_KEPT].row if len(history.commits) >= STEPS_KEPT else 0
    # Where there are such keys and no commit, `Reading.choose` takes it that the commits were lost.
    done = {key for key, entry in history.entries.items() if history.commits and entry.is_done(oldest)}
    row = 1 + (connection.execute("SELECT max(row) FROM done").fetchone()[0] or 0)
    for epoch, keys in by_epoch(history.entries[key].key for key in done).items():
        insert_settled(connection, settled_of(row, epoch, keys))
        row += 1
    useless = _useless(heads.values(), history, done, oldest)
    delete(connection, useless)
    live = {entry.epoch for key, entry in history.entries.items() if key not in done}
    _join_rows(connection, live, row)
    return len(heads) - len(useless)


def _useless(heads: Iterable[Head], history: History, done: set[bytes], oldest: int) -> list[int]:
    """Return the rows without which the others say the same."""
    useless: list[int] = []
    passed_on: set[bytes] = set()
    """Keys with rows of deliveries that stay: what takes those back later has to stay too."""
    for head in heads:
        if _is_useless(head, history, done, oldest, passed_on):
            useless.append(head.row)
        elif head.kind in (Kind.DELIVERED, Kind.RETURNED):
            passed_on.update(head.keys)
    return useless


def _is_useless(head: Head, history: History, done: set[bytes], oldest: int, passed_on: set[bytes]) -> bool:
    if head.kind is Kind.SALVAGED:  # who goes on from it has yet to be told
        return False
    if head.kind is Kind.COMMITTED:
        return head.row < oldest
    if done.issuperset(head.keys):
        return True
    entries = [history.entries[key] for key in head.keys if key not in done]
    return all(entry.seen != head.row and _is_outdated(head, entry, passed_on) for entry in entries)


def _is_outdated(head: Head, entry: Entry, passed_on: set[bytes]) -> bool:
    """Return whether *head* says nothing of *entry* that a later row does not, or takes back."""
    match head.kind:
        case Kind.QUEUED:  # again, after a restart
            return entry.data != head.row
        case Kind.ENDED:  # a result that was too old, or what failed, which commits list
            return head.status in COUNTED_BY_COMMITS or (_has_result(head) and entry.result != head.row)
    takes_back = head.kind is not Kind.DELIVERED and not passed_on.isdisjoint(head.keys)
    if entry.committed is not None or takes_back:
        return False
    return head.kind is Kind.REOPENED or entry.order is None or entry.order[0] != head.row


def _has_result(head: Head) -> bool:
    return head.size is not None


def _join_rows(connection: sqlite3.Connection, live: set[int], row: int) -> None:
    """Make one row of an epoch's rows: when nothing of it is live and a later one is, or they are many."""
    counts = connection.execute("SELECT epoch, count(*) FROM done GROUP BY epoch HAVING count(*) > 1")
    for epoch, count in counts.fetchall():
        is_over = epoch not in live and any(other > epoch for other in live)
        if is_over or count > _MOST_ROWS:
            _join(connection, epoch, row)
            row += 1


def _join(connection: sqlite3.Connection, epoch: int, row: int) -> None:
    keys = Keys()
    for table in ("done", "done_copy"):
        for old, sealed in connection.execute(f"SELECT row, head FROM {table} WHERE epoch = ?", (epoch,)):
            settled = open_settled(old, sealed)
            if settled is not None:
                add_settled(settled, keys)
        connection.execute(f"DELETE FROM {table} WHERE epoch = ?", (epoch,))
    insert_settled(connection, settled_of(row, epoch, keys))
