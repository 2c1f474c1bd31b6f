"""The store of a journal: what it tells of an error, and what it has left open, held and written by then."""

from __future__ import annotations

import atexit
import re
import runpy
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from areal_core import _process
from areal_core._journal import crash_points, lock, schema
from areal_core._journal import store as store_module
from areal_core._journal.reading import read_log
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record
from areal_core._journal.rows import Kind
from areal_core._journal.salvage import beside
from areal_core._journal.schema import connect
from areal_core._journal.store import Store
from areal_core._journal.wal import Wal
from areal_core.errors import JournalError
from journal_parts import Clock, changed, opened

PAGE = 4096

IN_A_CHECKPOINT = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, 121)  # where SQLite has its lock for checkpoints
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "journal.sqlite"


@pytest.fixture
def killed(directory: Path) -> Path:
    """Leave a journal with two transactions in its log: of the first page, and of a commit."""
    live = directory.with_name("live")
    with Store(live) as store:
        store.read()
        store.append([Queued("0:a", 0, bytes(5 * PAGE)), Committed(1)])
        store.append([Committed(2)])
        shutil.copytree(live, directory)
    return directory


def tear(path: Path) -> None:
    """Flip a bit in the last transaction of the log."""
    log = bytearray(beside(path, "-wal").read_bytes())
    log[-1] ^= 1
    beside(path, "-wal").write_bytes(log)


def spoil_the_last_table(directory: Path, path: Path) -> None:
    """Write a file that is its own, and of which not all makes sense."""
    with Store(directory):
        pass
    with path.open("r+b") as file:
        file.seek(4 * PAGE)
        file.write(b"\xff" * 8)


class Idle:
    """Who was given a store, and does nothing with it."""

    def is_at_work(self) -> bool:
        return False


class FailsToClose:
    """A connection whose ``close`` fails."""

    def close(self) -> None:
        raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def stuck(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return an open store whose connection fails to close."""
    store._opened().close()
    monkeypatch.setattr(store, "_connection", FailsToClose())
    return store


# ---- opened and closed


def test_before_it_is_open_there_is_nothing_of_it_and_closing_does_nothing(directory: Path) -> None:
    store = Store(directory)
    store.close()
    assert (store.torn, store.last_step, directory.exists()) == (None, None, False)
    with pytest.raises(
        JournalError, match=f"^the journal in {re.escape(str(directory))} is closed, or another process's$"
    ):
        store.steps()


def test_its_repr_says_which_file_it_is(directory: Path, path: Path) -> None:
    assert repr(Store(directory)) == f"<Store '{path}'>"


def test_who_says_no_patience_has_none(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "time", clock := Clock())
    with pytest.raises(JournalError, match="in use by this process"):
        Store(directory).open()
    assert clock.naps == []


def test_what_its_user_has_closed_is_its_own_once_it_is_open_again(store: Store, directory: Path) -> None:
    store.give_to(user := Idle())
    store.close_for(user)
    store.open()
    store.close()
    with Store(directory) as another:
        assert another.steps() == []


def test_a_directory_that_is_a_file_cannot_be_used(directory: Path) -> None:
    directory.write_text("mine")
    with pytest.raises(JournalError, match=f"^the journal in {re.escape(str(directory))} cannot be used: "):
        Store(directory).open()


def test_a_file_that_cannot_be_opened_is_no_damage_and_frees_the_directory(
    directory: Path, path: Path
) -> None:
    path.mkdir(parents=True)
    store = Store(directory)
    words = f"^the journal in {re.escape(str(directory))} cannot be used: unable to open database file"
    with pytest.raises(JournalError, match=words):
        store.open()
    path.rmdir()
    with Store(directory) as another:
        assert another.steps() == []


def test_a_file_that_cannot_be_salvaged_is_not_left_open(directory: Path, path: Path) -> None:
    spoil_the_last_table(directory, path)
    beside(path, ".damaged-new").mkdir()  # where the copy has its place
    store = Store(directory)
    with pytest.raises(JournalError, match=r"cannot be used: .*\.damaged-new"):
        store.open()
    with pytest.raises(JournalError, match="is closed"):
        store.steps()
    assert opened(path) == 0


def test_what_fails_to_close_is_told_and_frees_the_directory(stuck: Store, directory: Path) -> None:
    with pytest.raises(
        JournalError, match=f"^the journal in {re.escape(str(directory))} could not be closed: disk I/O"
    ):
        stuck.close()
    with Store(directory) as another:
        assert another.steps() == []


def test_what_fails_to_close_at_the_exit_costs_no_other(stuck: Store, directory: Path) -> None:
    others = [Store(directory.with_name(name)) for name in ("one", "other")]
    for other in others:
        other.open()
    store_module._close_all()
    for other in (stuck, *others):
        with pytest.raises(JournalError, match="is closed"):
            other.steps()


def test_its_connection_is_closed_before_the_file_is_salvaged(store: Store) -> None:
    connection = store._opened()
    store._let_go()
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        connection.execute("SELECT 1")


def test_a_child_and_the_interpreters_exit_leave_none_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[str, str]] = []

    def note(when: str, function: Callable[[], None]) -> None:
        registered.append((when, function.__name__))

    monkeypatch.setattr(_process, "call_in_child", partial(note, "fork"))
    monkeypatch.setattr(atexit, "register", partial(note, "exit"))
    runpy.run_path(str(store_module.__file__))
    assert registered == [("fork", "_leave_all_to_parent"), ("exit", "_close_all")]


def test_what_is_left_to_the_parent_is_used_no_more_and_never_collected(
    store: Store, directory: Path
) -> None:
    connection = store._opened()
    count = sys.getrefcount(connection)
    store_module._leave_all_to_parent()
    assert sys.getrefcount(connection) == count, "in the place of the store's there is one that stays"
    with pytest.raises(JournalError, match="another process's"):
        store.steps()
    assert connection.execute("SELECT 1").fetchone() == (1,)
    connection.close()
    with Store(directory) as another:
        assert another.steps() == []


# ---- read and written


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Store.steps, "cannot be read"),
        (Store.read, "cannot be read"),
        (Store.compact, "could not be compacted"),
        (lambda store: store.append([Committed(1)]), "could not be written"),
    ],
    ids=["steps", "read", "compact", "append"],
)
def test_an_error_of_sqlite_says_what_could_not_be_done(
    store: Store, directory: Path, path: Path, act: Callable[[Store], object], words: str
) -> None:
    store.append([])
    changed(path, "DROP TABLE log")
    with pytest.raises(
        JournalError, match=f"^the journal in {re.escape(str(directory))} {words}: no such table: log"
    ):
        act(store)


def test_memory_that_is_short_is_told_as_an_error_of_the_journal(store: Store) -> None:
    with pytest.raises(JournalError, match="cannot be read"), store._told("cannot be read"):
        raise MemoryError


def test_who_cannot_resume_a_step_is_told_in_which_directory(store: Store, directory: Path) -> None:
    with pytest.raises(
        JournalError, match=f"^the journal in {re.escape(str(directory))} cannot resume step 3"
    ):
        store.read(3)


def test_the_places_at_which_it_may_be_killed_are_passed_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[str] = []
    monkeypatch.setattr(crash_points, "hook", passed.append)
    store.append([Queued("0:a", 0), Committed(1)])
    appended = ["before_append", "after_append", "after_append", "before_fsync", "after_fsync"]
    assert passed == [*appended, "after_commit"]
    passed.clear()
    store.append([Queued("0:b", 0), Queued("0:c", 0)])
    assert passed == appended
    passed.clear()
    store.compact()
    assert passed == ["in_compaction"]


def test_nothing_is_compacted_until_it_is_so_what_is_gone_on_from(store: Store) -> None:
    store.append([Queued("0:a", 0), Queued("0:b", 0)])
    assert store.compact() == 2
    store.read()
    assert store.compact() == 0
    store.append([])
    assert store.compact() == 2


def test_a_commit_lists_what_was_delivered_or_failed_since_the_last(store: Store) -> None:
    some: list[Record] = [Delivered(("0:a",)), Ended("0:b", "failed"), Committed(1)]
    store.append([*some, Delivered(("0:c",)), Committed(2), Committed(3)])
    heads = read_log(store._opened()).heads.values()
    listed = [head.keys for head in heads if head.kind is Kind.COMMITTED]
    assert listed == [(b"0:a", b"0:b"), (b"0:c",), ()]


def test_a_directory_that_has_become_a_file_is_noticed_by_the_next_commit(
    store: Store, directory: Path, path: Path
) -> None:
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("mine")
    with pytest.raises(
        JournalError, match=f"^{re.escape(str(path))} was deleted or replaced while it was in use"
    ):
        store.append([Committed(1)])
    directory.unlink()
    aside.rename(directory)


# ---- what is found when it is opened


def test_a_file_that_others_may_read_becomes_its_owners_alone(directory: Path, path: Path) -> None:
    with Store(directory):
        pass
    path.chmod(0o644)
    with Store(directory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_torn_log_is_told_of_once(killed: Path, path: Path) -> None:
    tear(path)
    store = Store(killed)
    found: list[tuple[list[int], Path | None]] = []
    for _ in range(2):
        with store:
            found.append((store.steps(), store.torn))
    assert found == [([1], beside(path, ".torn-wal")), ([1], None)]


def test_a_torn_log_may_put_the_first_page_right(killed: Path, path: Path) -> None:
    tear(path)
    path.write_bytes(b"\xff" * PAGE + path.read_bytes()[PAGE:])
    with Store(killed) as store:
        assert (store.steps(), store.read(1).damaged, store.torn is not None) == ([1], 0, True)


def test_a_file_that_is_emptied_is_made_again_from_its_log(killed: Path, path: Path) -> None:
    path.write_bytes(b"")
    with Store(killed) as store:
        assert (store.steps(), store.read(2).damaged) == ([1, 2], 1)


def test_the_log_of_a_file_that_is_emptied_stays_until_there_is_a_copy(killed: Path, path: Path) -> None:
    """SQLite would delete it."""
    path.write_bytes(b"")
    log = beside(path, "-wal").read_bytes()
    beside(path, ".damaged-new").mkdir()  # where the copy of the file has its place
    with pytest.raises(JournalError, match="cannot be used"):
        Store(killed).open()
    assert beside(path, "-wal").read_bytes() == log


def test_where_there_can_be_no_log_it_says_so(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "connect", partial(connect, mode="DELETE"))
    with pytest.raises(JournalError, match=r"cannot be used: ok; delete$"):
        Store(directory).open()


def test_a_log_of_which_sqlite_takes_less_than_there_is_is_damaged(killed: Path, path: Path) -> None:
    log = Wal(beside(path, "-wal").read_bytes())
    beside(path, "-wal").unlink()
    store = Store(killed)
    with pytest.raises(sqlite3.DatabaseError, match=rf"^SQLite takes 0 of {log.frames} frames of the"):
        store._connect(log)
    store._let_go()


@pytest.mark.parametrize("stays", [True, False])
def test_a_log_that_another_process_has_put_into_the_file_meanwhile_is_no_damage(
    killed: Path, path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """It is empty then, or, where that process was the last to close the file, gone."""
    outside = sqlite3.connect(path)

    def checkpoint_and(content: bytes) -> Wal:
        outside.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if not stays:
            outside.close()
        return Wal(content)

    monkeypatch.setattr(store_module, "Wal", checkpoint_and)
    with Store(killed) as store:
        found = store.read(2)
        assert (found.damaged, found.kept_beside, list(found.done)) == (0, (), [])
        assert store.steps() == [1, 2]
    outside.close()


def test_a_log_that_is_deleted_while_it_is_opened_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, real = tmp_path / "journal.sqlite-wal", Path.read_bytes
    log.touch()

    def delete_first(found: Path) -> bytes:
        found.unlink()
        return real(found)

    monkeypatch.setattr(Path, "read_bytes", delete_first)
    assert store_module._content(log) == b""


SCHEMA = [
    (b"CREATE TABLE log (row INTEGER PRIMARY", b"CREATE TABLE log (row INTEGER RRIMARY"),
    (b"CREATE TABLE log (row", b"CREATE TABLE log (roo"),
    (
        b"CREATE TABLE done (row INTEGER PRIMARY KEY, epoch",
        b"CREATE TABLE done (row INTEGER PRIMARY KEY, Epoch",
    ),
    # Of this SQLite's own words are no text: it quotes what it does not understand.
    (b"CREATE TABLE log_copy (row", b"CREATE TABLE log_copy \xa8row"),
]


@pytest.mark.parametrize(("was", "now"), SCHEMA, ids=[now.decode(errors="replace") for _, now in SCHEMA])
def test_damage_to_how_a_table_was_made_costs_nothing_that_is_in_it(
    store: Store, path: Path, was: bytes, now: bytes
) -> None:
    store.append([Queued("0:a", 0, b"d"), Queued("0:b", 0, b"d"), Ended("0:b", "accepted", b"r")])
    store.close()
    content = path.read_bytes()
    assert content.count(was) == 1
    path.write_bytes(content.replace(was, now))
    store.open()
    found = store.read()
    assert ([one.key for one in found.pending], [one.key for one in found.finished]) == (["0:a"], ["0:b"])
    assert found.kept_beside == (beside(path, ".damaged-1"),)


def test_a_file_that_says_it_is_not_for_writing_to_is_damaged(store: Store, path: Path) -> None:
    store.append([Queued("0:a", 0, b"d")])
    store.close()
    content = bytearray(path.read_bytes())
    content[18] = 0x82
    path.write_bytes(content)
    store.open()
    assert [one.key for one in store.read().pending] == ["0:a"]
    store.append([Committed(1)])


@pytest.fixture
def read_from_outside(store: Store, path: Path) -> Iterator[None]:
    """Leave *store* closed, with a log that is still needed by who reads what was there before."""
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM log").fetchone()
    store.append([Committed(1)])
    store.close()
    yield
    reader.close()


@pytest.mark.usefixtures("read_from_outside")
def test_who_reads_it_from_outside_is_not_waited_for_and_makes_no_damage(store: Store) -> None:
    begun = time.monotonic()
    store.open()
    assert store.read(1).damaged == 0
    assert time.monotonic() - begun < 3, "SQLite waits 5 seconds, unless it is told not to"


@pytest.fixture
def checkpoint_from_outside(store: Store, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Leave *store* closed, with another process that is in a checkpoint of it until its input ends."""
    reader = sqlite3.connect(path)  # as long as somebody has it open its log and the file of locks stay
    reader.execute("SELECT count(*) FROM log").fetchone()
    store.append([Committed(1)])
    store.close()
    command = [sys.executable, "-I", "-S", "-c", IN_A_CHECKPOINT, f"{path}-shm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        yield process
    reader.close()


def test_a_checkpoint_of_somebody_elses_is_waited_for(
    store: Store, checkpoint_from_outside: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_it(_: float) -> None:
        checkpoint_from_outside.communicate()

    monkeypatch.setattr(schema, "time", SimpleNamespace(monotonic=time.monotonic, sleep=end_it))
    store.open()
    found = store.read(1)
    assert (found.damaged, found.kept_beside, checkpoint_from_outside.returncode) == (0, (), 0)


@pytest.mark.usefixtures("checkpoint_from_outside")
def test_a_checkpoint_that_does_not_end_is_told_and_is_no_damage(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(schema, "time", clock)
    monkeypatch.setattr(schema, "_PATIENCE_S", 0.05)
    with pytest.raises(JournalError, match=r"was in a checkpoint of .*journal.sqlite for 0.05 s; end what"):
        store.open()
    assert clock.naps == pytest.approx([0.01] * 5)
    assert not list(path.parent.glob("*damaged*"))
    assert opened(path.with_name("journal.lock")) == 0


def test_who_writes_to_it_from_outside_is_waited_for(store: Store) -> None:
    assert store._opened().execute("PRAGMA busy_timeout").fetchone() == (5_000,)
