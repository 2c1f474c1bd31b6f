"""What a salvage takes of the rows that are found, and what is on the disk at each step of it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from areal_core._journal import salvage
from areal_core._journal.keys import Keys
from areal_core._journal.reading import read_log, read_settled
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Returned
from areal_core._journal.rows import Head, Kind, Settled, head_of, seal, settled_of
from areal_core._journal.salvage import beside
from areal_core._journal.schema import connect, create, insert, insert_settled
from areal_core._journal.wal import Wal

QUEUED = Queued("0:0", 0, b"data")
NAME = "journal.sqlite"
EMPTY = Wal(b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / NAME


def written(path: Path) -> None:
    """Write a file with a row in its log, and one of keys that are done."""
    create(path)
    connection = connect(path, mode="DELETE")
    insert(connection, *head_of(3, QUEUED))
    insert_settled(connection, settled_of(1, 2, Keys(["2:5"])))
    connection.close()


def names(path: Path) -> set[str]:
    """Return what is in the directory of *path*, without what all names there begin with."""
    return {one.name.removeprefix(NAME) for one in path.parent.iterdir()}


@pytest.fixture
def synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Return what was in the directory at each time that its names were put on the disk."""
    times: list[set[str]] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path.parent:
            times.append(names(path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return times


# -- the rows that are found -----------------------------------------------------------------------


def test_each_row_that_makes_no_sense_is_counted_and_no_other() -> None:
    found = salvage._Found()
    found.add(1, [None, seal(head_of(1, QUEUED)[0]), b"data"])
    found.add(1, [None, 0, seal(Settled(1, 0, (), ()))])
    assert found.damaged == 0
    found.add(2, None)
    found.add(2, [None, 0, b"no such row"])
    found.add(2, [None, seal(head_of(2, QUEUED)[0]), b"damaged"])
    assert found.damaged == 3


def test_a_row_of_done_keys_with_the_number_of_another_is_not_taken() -> None:
    found = salvage._Found()
    found.add(2, [None, 0, seal(settled_of(1, 0, Keys(["0:0"])))])
    assert (found.rows_of_settled(), found.damaged) == ([], 1)


def test_keys_that_are_done_come_in_one_row_for_each_epoch() -> None:
    found = salvage._Found()
    for row, key in ((4, "1:0"), (6, "3:7"), (9, "1:1")):
        epoch = int(key[0])
        found.add(row, [None, epoch, seal(settled_of(row, epoch, Keys([key])))])
    assert found.rows_of_settled() == [Settled(1, 1, (0, 2), ()), Settled(2, 3, (7, 8), ())]


@pytest.mark.parametrize("is_first", [True, False])
def test_of_a_delivery_and_its_taking_back_in_its_place_the_latter_counts(is_first: bool) -> None:
    some = [head_of(5, Returned(("0:0",)))[0], head_of(5, Delivered(("0:0",)))[0]]
    found = salvage._Found()
    for head in some if is_first else reversed(some):
        found.add(5, [None, seal(head), None])
    assert found.log == {5: (some[0], None)}


@pytest.mark.parametrize(("rows", "noted"), [([], 1), ([1], 2), ([7, 3], 8)])
def test_what_was_salvaged_is_noted_in_the_row_after_the_last(rows: list[int], noted: int) -> None:
    found = salvage._Found()
    for row in rows:
        found.add(row, [None, seal(head_of(row, Committed(row))[0]), None])
    found.note("copy")
    assert found.log[noted] == (Head(noted, Kind.SALVAGED, (), 1, "copy"), None)
    assert len(found.log) == len(rows) + 1


@pytest.mark.parametrize(
    ("record", "left"),
    [
        (QUEUED, Queued("0:0", 0)),
        (Ended("0:0", "accepted", b"result"), None),
        (Ended("0:0", "rejected", b"why"), Ended("0:0", "rejected")),
    ],
    ids=["queued", "accepted", "rejected"],
)
def test_without_its_body_a_row_says_what_else_it_said(record: Record, left: Record | None) -> None:
    """Without its result an item did not end: it is played again."""
    expected = None if left is None else head_of(3, left)[0]
    assert salvage.without_body(head_of(3, record)[0]) == expected


# -- the new file, and the old one -----------------------------------------------------------------


def test_the_new_file_has_what_was_found_and_says_where_the_old_one_is(path: Path) -> None:
    written(path)
    before = path.read_bytes()
    salvage.salvage(path, EMPTY, lambda: None)
    connection = connect(path)
    assert read_log(connection).heads == {
        3: head_of(3, QUEUED)[0],
        4: Head(4, Kind.SALVAGED, (), 1, f"{NAME}.damaged-1"),
    }
    keys, damaged = read_settled(connection)
    assert (list(keys), damaged) == (["2:5"], 0)
    connection.close()
    assert beside(path, ".damaged-1").read_bytes() == before


def test_it_is_let_go_when_the_copies_are_there(path: Path) -> None:
    path.write_bytes(b"damaged")
    seen: list[set[str]] = []
    salvage.salvage(path, Wal(b"log"), lambda: seen.append(names(path)))
    assert seen == [{"", ".damaged-new", ".damaged-new-wal"}]
    assert names(path) == {"", ".damaged-1", ".damaged-1-wal"}


def test_the_new_file_is_on_the_disk_before_the_old_one_is_touched(
    path: Path, synced: list[set[str]]
) -> None:
    path.write_bytes(b"damaged")
    salvage.salvage(path, EMPTY, synced.clear)
    copied = {"", ".damaged-new"}
    assert synced[:2] == [copied | {".new"}, copied | {".salvaged"}]


def test_each_step_to_its_place_is_on_the_disk_before_the_next(path: Path, synced: list[set[str]]) -> None:
    for suffix in ("", "-wal", "-shm", ".damaged-new", ".damaged-new-wal", ".salvaged"):
        beside(path, suffix).write_text(suffix)
    salvage.finish(path)
    kept = {"", ".damaged-1", ".damaged-1-wal"}
    assert synced == [kept | {"-wal", "-shm", ".salvaged"}, kept | {".salvaged"}, kept]
    assert path.read_text() == ".salvaged"


def test_what_a_salvage_before_has_begun_is_not_taken_for_this_ones(path: Path) -> None:
    path.write_bytes(b"damaged")
    for suffix in (".damaged-new", ".damaged-new-wal", ".new", ".new-journal"):
        beside(path, suffix).write_text("begun")
    salvage.salvage(path, EMPTY, lambda: None)
    assert names(path) == {"", ".damaged-1"}


def test_of_copies_that_cannot_be_made_nothing_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"damaged")
    closed: list[None] = []

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        salvage.salvage(path, Wal(b"log"), lambda: closed.append(None))
    assert (names(path), closed) == ({""}, [])


def test_a_copy_is_complete_when_it_is_put_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: contents.append(path.read_bytes()))
    salvage.keep(path, b"few bytes")
    assert contents[0] == b"few bytes"


def test_there_may_be_a_hundred_copies(path: Path) -> None:
    for number in range(1, 101):
        beside(path, f".damaged-{number}").touch()
    beside(path, ".salvaged").touch()
    beside(path, ".damaged-new").write_text("the last")
    salvage.finish(path)
    assert beside(path, ".damaged-101").read_text() == "the last"


def test_a_file_that_cannot_be_written_is_not_left_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections: list[sqlite3.Connection] = []

    def spy(path: Path, *, mode: str) -> sqlite3.Connection:
        connections.append(connect(path, mode=mode))
        return connections[0]

    monkeypatch.setattr(salvage, "connect", spy)
    found = salvage._Found()
    found.log[2**63] = Head(2**63, Kind.REOPENED, (b"0:0",)), None
    with pytest.raises(OverflowError):
        salvage._write(found, path)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connections[0].execute("SELECT 1")
