"""Which rows a compaction leaves, and what they say then."""

from __future__ import annotations

import sqlite3

import pytest

from areal_core._journal.compaction import compact
from areal_core._journal.keys import Keys
from areal_core._journal.reading import read_log, read_settled
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Reopened, Returned
from areal_core._journal.rows import head_of, settled_of
from areal_core._journal.schema import insert, insert_settled

A: list[Record] = [Queued("0:a", 0, b"d"), Ended("0:a", "accepted", b"r")]
B: list[Record] = [Queued("0:b", 0, b"d"), Ended("0:b", "accepted", b"r")]


def write(connection: sqlite3.Connection, *records: Record) -> None:
    first = 1 + max(read_log(connection).heads, default=0)
    for row, record in enumerate(records, first):
        insert(connection, *head_of(row, record))


def settle(connection: sqlite3.Connection, first_row: int, epoch: int, count: int) -> None:
    """Write so many rows of keys that are done, with one each."""
    for index in range(count):
        keys = Keys([f"{epoch}:{index}"])
        insert_settled(connection, settled_of(first_row + index, epoch, keys))


def settled_rows(connection: sqlite3.Connection) -> list[int]:
    """Return how many rows of done keys each table has."""
    tables = ("done", "done_copy")
    return [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]


def done(connection: sqlite3.Connection) -> list[str]:
    """Return the keys that are done for good, in rows none of which is damaged."""
    keys, damaged = read_settled(connection)
    assert damaged == 0
    return list(keys)


@pytest.mark.parametrize(
    ("since", "left"),
    [
        ([Delivered(("0:a",))], [1, 2, 3, 4, 5]),
        ([Delivered(("0:a",)), Reopened("0:a")], [1, 3, 4]),
        ([Delivered(("0:a",)), Returned(("0:a",)), Delivered(("0:a",))], [1, 2, 3, 4, 7]),
        ([Delivered(("0:a", "0:b")), Reopened("0:a")], [1, 3, 4, 5, 6]),
        ([Delivered(("0:a", "0:b")), Returned(("0:a",)), Reopened("0:a")], [1, 3, 4, 5, 6, 7]),
    ],
)
def test_a_row_goes_when_the_others_say_the_same_without_it(
    connection: sqlite3.Connection, since: list[Record], left: list[int]
) -> None:
    write(connection, *A, *B, *since)
    assert compact(connection) == len(left)
    assert list(read_log(connection).heads) == left


def test_what_is_taken_back_from_a_delivery_that_stays_is_in_no_later_commit(
    connection: sqlite3.Connection,
) -> None:
    write(connection, *A, *B, Delivered(("0:a", "0:b")), Reopened("0:a"))
    compact(connection)
    write(connection, Committed(0), Committed(1))
    compact(connection)
    assert done(connection) == ["0:b"]


def test_what_is_done_of_each_epoch_is_a_row_of_its_own(connection: sqlite3.Connection) -> None:
    keys = ("0:0", "1:0", "2:0")
    write(
        connection, *(Queued(key, int(key[0])) for key in keys), Delivered(keys), Committed(0), Committed(1)
    )
    compact(connection)
    assert done(connection) == list(keys)
    assert settled_rows(connection) == [3, 3]


@pytest.mark.parametrize(
    ("epoch", "count", "live", "left"),
    [
        (0, 2, [1], 1),
        (0, 2, [0, 1], 2),
        (0, 2, [0], 2),
        (0, 2, [], 2),  # more of it may come
        (1, 2, [0], 2),
        (0, 64, [0], 64),
        (0, 65, [0], 1),
    ],
)
def test_rows_of_an_epoch_become_one_when_it_is_over_or_they_are_many(
    connection: sqlite3.Connection, epoch: int, count: int, live: list[int], left: int
) -> None:
    write(connection, *(Queued(f"{other}:a", other) for other in live))
    settle(connection, 1, epoch, count)
    compact(connection)
    assert settled_rows(connection) == [left, left]
    assert done(connection) == [f"{epoch}:{index}" for index in range(count)]


def test_epochs_that_are_over_together_become_a_row_each(connection: sqlite3.Connection) -> None:
    write(connection, Queued("2:a", 2))
    settle(connection, 1, 0, 2)
    settle(connection, 3, 1, 2)
    compact(connection)
    assert settled_rows(connection) == [2, 2]
    assert done(connection) == ["0:0", "0:1", "1:0", "1:1"]


def test_a_damaged_row_is_left_out_of_the_one_that_its_copy_is_in(connection: sqlite3.Connection) -> None:
    write(connection, Queued("1:a", 1))
    settle(connection, 1, 0, 2)
    connection.execute("UPDATE done SET head = x'00' WHERE row = 1")
    compact(connection)
    assert settled_rows(connection) == [1, 1]
    assert done(connection) == ["0:0", "0:1"]
