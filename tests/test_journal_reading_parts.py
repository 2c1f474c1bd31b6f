"""What a restart finds in the rows of a journal, and what it leaves of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from areal_core._journal.keys import Keys
from areal_core._journal.reading import Reading, read_log
from areal_core._journal.records import Committed, Ended, Queued, Record
from areal_core._journal.rows import Kind, head_of
from areal_core._journal.schema import insert
from areal_core.errors import JournalError

HERE = Path("journal")


def write(connection: sqlite3.Connection, *records: Record) -> None:
    """Write *records*; the commit of step 3 says that the key b"3" is done."""
    for row, record in enumerate(records, 1):
        also = [str(record.step).encode()] if isinstance(record, Committed) else []
        insert(connection, *head_of(row, record, also))


def test_what_no_trainer_had_comes_in_the_order_it_ended(connection: sqlite3.Connection) -> None:
    write(connection, *(Queued(key, 0) for key in "abc"), *(Ended(key, "accepted", b"r") for key in "cab"))
    reading = Reading(read_log(connection), Keys(), 0)
    assert [one.key for one in reading.recovered(connection, HERE).finished] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (1, {1: (b"0", b"1")}),
        (2, {1: (b"0", b"1"), 2: (b"2",)}),
    ],
)
def test_the_first_commit_that_stays_says_what_older_ones_said(
    connection: sqlite3.Connection, step: int, left: dict[int, tuple[bytes, ...]]
) -> None:
    write(connection, Queued("a", 0), Committed(0), Queued("b", 0), Committed(1), Committed(2))
    reading = Reading(read_log(connection), Keys(), 0)
    reading.choose(step, HERE)
    reading.make_so(connection)
    heads = read_log(connection).heads.values()
    assert {head.number: head.keys for head in heads if head.kind is Kind.COMMITTED} == left


@pytest.mark.parametrize("step", [None, 0])
def test_keys_that_are_done_without_a_commit_say_that_those_are_lost(
    connection: sqlite3.Connection, step: int | None
) -> None:
    reading = Reading(read_log(connection), Keys(["0:0"]), 0)
    with pytest.raises(JournalError, match=r"its commits are lost: move the directory away to begin anew"):
        reading.choose(step, HERE)
