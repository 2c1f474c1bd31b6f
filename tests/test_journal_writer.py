"""Records put without waiting, and written beside the event loop."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_core._journal import crash_points, fitting
from areal_core._journal import store as store_module
from areal_core._journal import upkeep as upkeep_module
from areal_core._journal import writer as module
from areal_core._journal.packing import unpack
from areal_core._journal.records import Committed, Delivered, Ended, Queued, Record, Recovered, Reopened
from areal_core._journal.store import Store
from areal_core._journal.telling import Lines
from areal_core._journal.upkeep import Upkeep
from areal_core._journal.writer import Writer
from areal_core.errors import JournalError
from children import RunScript
from logged import LogLines

LONG_S = 20.0


class Disk:
    """Stands before each append: it may wait there, or fail."""

    def __init__(self, store: Store) -> None:
        self._append = store.append
        self.opened = threading.Event()
        self.opened.set()
        self.reached = threading.Event()
        self.error: Exception | None = None
        self.batches: list[list[Record]] = []

    def append(self, records: list[Record]) -> None:
        self.reached.set()
        assert self.opened.wait(LONG_S)
        if self.error is not None:
            raise self.error
        self._append(records)
        self.batches.append(list(records))


@pytest.fixture
def disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(store)
    monkeypatch.setattr(store, "append", disk.append)
    monkeypatch.setattr(module, "_FIRST_DELAY_S", 0.001)
    yield disk
    disk.opened.set()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    with Writer(store) as made:
        yield made


def left_by(writer: Writer, store: Store, step: int) -> Recovered:
    """Close *writer* and with it *store*; return what is in the file."""
    writer.close(LONG_S)
    with Store(store.path.parent) as again:
        return again.read(step)


class Asking:
    """A logger that waits, at each line, for a thread that asks something of *writer*."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.events: list[str] = []
        self.stuck: list[str] = []

    def log(self, event: str, **_: object) -> None:
        self.events.append(event)
        assert self.writer is not None
        thread = threading.Thread(target=self.writer.put, args=(Reopened("0:x"),), daemon=True)
        thread.start()
        thread.join(LONG_S / 4)
        if thread.is_alive():
            self.stuck.append(event)

    info = warning = error = log


class Inside:
    """Stands in the middle of each transaction of any journal."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, name: str) -> None:
        if name == "before_fsync":
            self.reached.set()
            assert self.opened.wait(LONG_S)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    made = Inside()
    monkeypatch.setattr(crash_points, "hook", made)
    yield made
    made.opened.set()


def test_what_was_put_is_found_after_a_flush(store: Store, writer: Writer) -> None:
    for number in range(3):
        writer.put(Queued(f"0:{number}", 0), {"prompt": ("a", number)})
    writer.put(Ended("0:0", "accepted"), {"x": np.arange(3)})
    writer.put(Ended("0:1", "rejected"))
    writer.put(Committed(1))
    writer.flush(LONG_S)
    found = left_by(writer, store, 1)
    assert [unpack(one.result)["x"].tolist() for one in found.finished] == [[0, 1, 2]]
    assert [unpack(one.data or b"") for one in found.pending] == [{"prompt": ("a", 2)}]
    assert list(found.done) == ["0:1"]


def test_all_that_waits_is_one_transaction_in_order(disk: Disk, writer: Writer) -> None:
    disk.opened.clear()
    records: list[Record] = [Queued(f"0:{number}", 0) for number in range(100)]
    writer.put(records[0])
    assert disk.reached.wait(LONG_S)
    for record in records[1:]:
        writer.put(record)
    disk.opened.set()
    writer.flush(LONG_S)
    assert disk.batches == [records[:1], records[1:]]


def test_a_transaction_is_bounded(disk: Disk, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 100)
    disk.opened.clear()
    for number in range(6):
        writer.put(Queued(f"0:{number}", 0, bytes(49 if number else 300)))
    disk.opened.set()
    writer.flush(LONG_S)
    assert [len(batch) for batch in disk.batches] == [1, 2, 2, 1]


def test_putting_waits_for_no_disk(disk: Disk, writer: Writer) -> None:
    disk.opened.clear()
    for number in range(100):
        writer.put(Ended(f"0:{number}", "accepted", bytes(1000)))
    with pytest.raises(TimeoutError, match=r"not on the disk within 0\.01 s"):
        writer.flush(0.01)
    assert disk.batches == [] and writer.waiting_bytes == 100_000
    disk.opened.set()
    writer.flush(LONG_S)
    assert writer.waiting_bytes == 0


def test_no_thread_is_at_work_with_nothing_to_write(disk: Disk, writer: Writer) -> None:
    for step in range(3):
        writer.put(Committed(step))
        writer.flush(LONG_S)
    assert [len(batch) for batch in disk.batches] == [1, 1, 1]
    writer.flush(0.0)


def test_a_value_is_packed_before_it_can_be_changed(store: Store, disk: Disk, writer: Writer) -> None:
    disk.opened.clear()
    array = np.zeros(3)
    writer.put(Queued("0:0", 0), {"x": array})
    array += 1
    writer.put(Committed(1))
    disk.opened.set()
    writer.flush(LONG_S)
    assert unpack(left_by(writer, store, 1).pending[0].data or b"")["x"].tolist() == [0, 0, 0]


def test_what_cannot_be_packed_is_left_out_and_told(
    store: Store, writer: Writer, log_lines: LogLines
) -> None:
    writer.put(Queued("0:0", 0), {"lock": threading.Lock()})
    for _ in range(3):
        writer.put(Ended("0:0", "accepted"), {1, 2})
    writer.put(Committed(1))
    writer.flush(LONG_S)
    assert [(one.key, one.data) for one in left_by(writer, store, 1).pending] == [("0:0", None)]
    assert writer.left_out == 4
    lines = [line for line in log_lines.of("warning") if line.startswith("journal_left_out")]
    assert [line.rpartition("=")[2] for line in lines] == ["1", "2", "4"]
    assert "value['lock'] is or has a lock" in lines[0]


def test_results_are_left_out_when_too_much_waits_and_nothing_else(
    store: Store, directory: Path, log_lines: LogLines
) -> None:
    disk = Disk(store)
    with pytest.MonkeyPatch.context() as patch, Writer(store, max_waiting_bytes=1000) as writer:
        patch.setattr(store, "append", disk.append)
        disk.opened.clear()
        writer.put(Ended("0:0", "accepted", bytes(5_000)))  # alone it may
        for number in range(1, 5):
            writer.put(Queued(f"0:{number}", 0, bytes(500)))
            writer.put(Ended(f"0:{number}", "accepted", bytes(500)))
        writer.put(Ended("0:4", "rejected"))
        writer.put(Delivered(("0:1",)))
        writer.put(Committed(1))
        assert (writer.left_out, writer.waiting_bytes) == (8, 5_000)
        disk.opened.set()
        writer.flush(LONG_S)
    found = left_by(writer, store, 1)
    assert [one.key for one in found.finished] == ["0:0"]
    assert [(one.key, one.data) for one in found.pending] == [("0:2", None), ("0:3", None)]
    assert sorted(found.done) == ["0:1", "0:4"]
    assert len([line for line in log_lines.of("warning") if "max_waiting_bytes=1000" in line]) == 4


def test_a_record_too_large_for_the_file_is_left_out(
    store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LARGEST_BODY", 100)
    writer.put(Queued("0:0", 0, bytes(101)))
    writer.put(Ended("0:0", "accepted", bytes(101)))
    writer.put(Committed(1))
    writer.flush(LONG_S)
    assert [(one.key, one.data) for one in left_by(writer, store, 1).pending] == [("0:0", None)]


def test_a_write_that_fails_is_told_once_and_tried_until_it_succeeds(
    store: Store, disk: Disk, log_lines: LogLines
) -> None:
    with Writer(store) as writer:
        for _ in range(2):
            disk.error = JournalError("the disk is full")
            writer.put(Queued("0:a", 0))
            for _ in range(3):
                with pytest.raises(JournalError, match="the disk is full"):
                    writer.flush(LONG_S)
            disk.error = None
            writer.flush(LONG_S)
        assert writer.failed >= 6
    assert len([line for line in log_lines.of("warning") if line.startswith("journal_not_written")]) == 2
    assert [len(batch) for batch in disk.batches] == [1, 1]


def test_a_write_is_tried_again_without_anybody_asking(
    store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, tried = iter(range(5)), threading.Event()

    def append(records: list[Record]) -> None:
        if next(attempts) < 4:
            raise OSError("later")
        tried.set()

    monkeypatch.setattr(store, "append", append)
    with Writer(store) as writer:
        writer.put(Committed(1))
        assert tried.wait(LONG_S)
        writer.flush(LONG_S)
        assert writer.failed == 4


@pytest.mark.parametrize("is_said", [True, False], ids=["said", "logged"])
def test_loggers_that_raise_cost_nothing(store: Store, disk: Disk, is_said: bool) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("mine")

    logger = type("Failing", (), dict.fromkeys(("info", "warning", "error"), fail))
    disk.error = ValueError("odd")
    with Writer(store, logger=logger, say=fail if is_said else None) as writer:
        writer.put(Ended("0:0", "accepted"), {1, 2})
        writer.put(Committed(1))
        with pytest.raises(JournalError, match="ValueError: odd"):
            writer.flush(LONG_S)
        disk.error = None
        writer.flush(LONG_S)
    assert disk.batches == [[Committed(1)]]


@pytest.mark.parametrize("is_closed", [False, True], ids=["goes-on", "gives-up"])
def test_a_log_handler_may_wait_for_a_thread_that_puts(store: Store, disk: Disk, is_closed: bool) -> None:
    logger = Asking()
    disk.error = JournalError("the disk is full")
    writer = logger.writer = Writer(store, logger=logger)
    writer.put(Committed(1))
    with pytest.raises(JournalError, match="the disk is full"):
        writer.flush(LONG_S)
    if not is_closed:
        disk.error = None
        writer.flush(LONG_S)
    writer.close(LONG_S)
    writer.put(Ended("0:0", "accepted"), {1, 2})
    assert not logger.stuck
    last = "journal_lost" if is_closed else "journal_written_again"
    assert {"journal_not_written", last, "journal_left_out"} <= set(logger.events)


def test_lines_of_who_puts_are_said_and_those_of_the_thread_logged(
    store: Store, disk: Disk, log_lines: LogLines
) -> None:
    said: list[tuple[str, str, dict[str, Any]]] = []
    writer = Writer(store, say=lambda *line: said.append(line))
    writer.put(Ended("0:0", "accepted"), {1, 2})
    assert [(level, event, fields["left_out"]) for level, event, fields in said] == [
        ("warning", "journal_left_out", 1)
    ]
    assert not log_lines.of("warning")
    disk.error = JournalError("the disk is full")
    writer.put(Committed(1))
    log_lines.wait_for("journal_not_written")
    disk.error = None
    writer.close(LONG_S)
    writer.put(Committed(2))
    assert said[1:] == [("error", "journal_lost", {"why": "closed", "lost": 1})]
    assert not log_lines.of("error")


def test_a_line_that_cannot_be_said_is_logged(store: Store, log_lines: LogLines) -> None:
    def fail(*_: object) -> None:
        raise ValueError("mine")

    with Writer(store, say=fail) as writer:
        writer.put(Ended("0:0", "accepted"), {1, 2})
        assert [line.partition(" ")[0] for line in log_lines.of("warning")] == ["journal_left_out"]


def test_without_a_thread_to_be_had_that_is_said_and_closing_gives_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    said: list[str] = []
    writer = Writer(store, say=lambda level, event, fields: said.append(event))
    monkeypatch.setattr(writer._pool, "submit", refuse)
    writer.put(Committed(1))
    with pytest.raises(JournalError, match="no thread to write with: can't start new thread"):
        writer.flush(LONG_S)
    assert said == ["journal_not_written"] and writer.failed == 2
    writer.close(LONG_S)
    assert writer.lost == 1 and "no thread to write with" in log_lines.of("error")[0]


def test_a_commit_that_is_not_above_the_last_is_refused_at_once(store: Store, writer: Writer) -> None:
    store.append([Committed(3)])
    with Writer(store) as other:
        for step in (2, 3):
            with pytest.raises(ValueError, match=f"step={step} is not above 3"):
                other.put(Committed(step))
        other.put(Committed(4))
        with pytest.raises(ValueError, match="step=4 is not above 4"):
            other.put(Committed(4))


@pytest.mark.parametrize(
    "record",
    [None, "x", Queued(1, 0), Queued("a", None), Queued("a", 0, "x"), Delivered(("a", 1)), Delivered(["a"]),  # type: ignore[arg-type]
     Committed("1"), Ended("a", None), Reopened(b"a")],  # type: ignore[arg-type]
    ids=repr,
)  # fmt: skip
def test_what_is_no_record_is_refused_at_once(writer: Writer, record: Any) -> None:
    with pytest.raises(TypeError, match="is no record of the journal"):
        writer.put(record)


def test_a_value_belongs_to_data_and_results_alone(writer: Writer) -> None:
    for record in (Committed(1), Ended("a", "rejected"), Reopened("a")):
        with pytest.raises(TypeError, match="takes no value"):
            writer.put(record, 3)
    with pytest.raises(ValueError, match="64 bits"):
        writer.put(Committed(2**63))


def writing_threads() -> list[str]:
    """Return those that are alive: one whose start was interrupted, in another test, is listed for ever."""
    alive = [thread.name for thread in threading.enumerate() if thread.is_alive()]
    return [name for name in alive if name.startswith("areal-journal")]


def test_closing_writes_what_waits_and_what_is_put_after_is_lost_and_told(
    store: Store, disk: Disk, log_lines: LogLines
) -> None:
    disk.opened.clear()
    writer = Writer(store)
    for step in range(4):
        writer.put(Committed(step))
    threading.Timer(0.0, disk.opened.set).start()
    writer.close(LONG_S)
    writer.close(LONG_S)
    writer.put(Committed(9))
    assert store.last_step == 3 and writer.lost == 1
    assert [line for line in log_lines.of("error") if line == "journal_lost why=closed lost=1"]
    assert not writing_threads()


def test_closing_gives_up_what_cannot_be_written(store: Store, disk: Disk, log_lines: LogLines) -> None:
    disk.error = JournalError("the disk is gone")
    writer = Writer(store)
    writer.put(Queued("0:a", 0))
    writer.put(Committed(1))
    writer.close(LONG_S)
    assert (writer.lost, writer.waiting_bytes, disk.batches) == (2, 0, [])
    assert [line for line in log_lines.of("error") if "why=the disk is gone lost=2" in line]
    with pytest.raises(JournalError, match="2 records of the journal were lost"):
        writer.flush(LONG_S)


def test_closing_closes_the_store(store: Store, writer: Writer, directory: Path) -> None:
    writer.put(Committed(1))
    store.close()
    writer.flush(LONG_S)
    writer.close(LONG_S)
    with Store(directory) as again:
        assert again.steps() == [1]


def test_a_thread_that_is_left_alone_with_a_hanging_disk_closes_the_store_at_its_end(
    store: Store, inside: Inside, directory: Path, log_lines: LogLines
) -> None:
    writer = Writer(store)
    writer.put(Queued("0:a", 0, b"d"))
    assert inside.reached.wait(LONG_S)
    writer.put(Committed(1))
    writer.close(0.01)
    store.close()
    assert "journal_still_writing waited_s=0.01 records=2" in log_lines.of("warning")
    with pytest.raises(JournalError, match="in use by this process"), Store(directory):
        pass
    inside.opened.set()
    again = Store(directory)
    again.open(patience_s=LONG_S)
    assert [one.key for one in again.read(1).pending] == ["0:a"]
    writer.close(LONG_S)
    assert again.steps() == [1]
    again.close()


class SlowToClose:
    """A connection whose ``close`` waits."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.reached, self.opened = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> None:
        self.reached.set()
        assert self.opened.wait(LONG_S)
        self._connection.close()


def test_nobody_frees_the_directory_while_another_thread_closes_the_file(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowToClose(store._connection)
    monkeypatch.setattr(store, "_connection", slow)
    writer = Writer(store)
    closing = threading.Thread(target=writer.close, args=(LONG_S,))
    closing.start()
    assert slow.reached.wait(LONG_S)
    store.close()
    writer.close(LONG_S)
    store_module._close_all()
    try:
        with pytest.raises(JournalError, match="in use by this process"), Store(directory):
            pass
    finally:
        slow.opened.set()
        closing.join()
    with Store(directory) as again:
        assert again.steps() == []


def test_closing_again_waits_for_a_thread_that_was_left_alone(
    store: Store, inside: Inside, directory: Path
) -> None:
    writer = Writer(store)
    writer.put(Committed(1))
    assert inside.reached.wait(LONG_S)
    writer.close(0.0)
    inside.opened.set()
    writer.close(LONG_S)
    assert not writer.is_at_work()
    with Store(directory) as again:
        assert again.steps() == [1]
    assert not writing_threads()


def test_the_interpreters_exit_leaves_a_store_alone_that_a_thread_uses(
    store: Store, inside: Inside, directory: Path
) -> None:
    writer = Writer(store)
    writer.put(Committed(1))
    assert inside.reached.wait(LONG_S)
    store_module._close_all()
    inside.opened.set()
    writer.flush(LONG_S)
    writer.close(LONG_S)
    assert writer.lost == 0
    with Store(directory) as again:
        assert again.steps() == [1]


def test_the_interpreters_exit_closes_the_store_of_an_idle_writer(writer: Writer, directory: Path) -> None:
    writer.put(Committed(1))
    writer.flush(LONG_S)
    writer._pool.shutdown()  # as the interpreter does before it calls that
    store_module._close_all()
    with Store(directory) as again:
        assert again.steps() == [1]


def test_of_many_threads_records_none_is_lost(store: Store, writer: Writer) -> None:
    def put(place: int) -> None:
        for number in range(200):
            writer.put(Queued(f"{place}:{number}", place, b"x"))

    threads = [threading.Thread(target=put, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.put(Committed(1))
    writer.flush(LONG_S)
    found = [one.key for one in left_by(writer, store, 1).pending]
    assert len(found) == 800
    for place in range(4):
        assert [key for key in found if key[0] == str(place)] == [f"{place}:{n}" for n in range(200)]


def test_the_loop_runs_while_the_disk_hangs(disk: Disk, writer: Writer, loop_factory: Any) -> None:
    disk.opened.clear()

    async def main() -> int:
        for number in range(50):
            writer.put(Ended(f"0:{number}", "accepted"), {"x": np.zeros(1000)})
            await asyncio.sleep(0)
        return len(disk.batches)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == 0
    disk.opened.set()


def test_compaction_that_fails_is_told_and_costs_no_record(
    store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    def fail() -> None:
        raise JournalError("no room")

    monkeypatch.setattr(store, "compact", fail)
    for step in range(3):
        writer.put(Committed(step))
    writer.put(Queued("0:a", 0))
    writer.flush(LONG_S)
    found = left_by(writer, store, 2)
    assert [one.key for one in found.pending] == ["0:a"]
    assert "journal_not_compacted error=JournalError: no room" in log_lines.wait_for("not_compacted").message


def test_what_was_committed_long_ago_is_compacted(store: Store, writer: Writer) -> None:
    most = 0
    for step in range(50):
        writer.put(Queued(f"0:{step}", 0, b"d"))
        writer.put(Ended(f"0:{step}", "accepted", b"r"))
        writer.put(Delivered((f"0:{step}",)))
        writer.put(Committed(step))
        writer.flush(LONG_S)
        most = max(most, *store._opened().execute("SELECT count(*) FROM log").fetchone())
    assert most < 20, "the rows of the last two commits, and as many again"
    assert len(left_by(writer, store, 49).done) == 50


def test_a_first_batch_is_compacted_and_then_what_is_as_much_as_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    compact = store.compact

    def counted() -> int:
        left.append(compact())
        return left[-1]

    monkeypatch.setattr(store, "compact", counted)
    upkeep = Upkeep(store, Lines(None, None))
    number = iter(range(10_000))
    for count, expected in ((1, 1), (255, 1), (1, 2), (256, 2), (1, 3), (513, 3), (1, 4)):
        batch = [Queued(f"0:{next(number)}", 0) for _ in range(count)]
        store.append(batch)
        upkeep.after(batch)
        assert len(left) == expected
    assert left == [1, 257, 514, 1028]


def test_lives_that_come_to_no_commit_leave_no_more_than_one(directory: Path) -> None:
    keys = [f"0:{number}" for number in range(20)]
    rows: list[int] = []
    for _ in range(6):
        store = Store(directory)
        store.open()
        store.read()
        with Writer(store) as writer:
            for key in keys:
                writer.put(Queued(key, 0, bytes(1000)))
                writer.put(Reopened(key))
            for key in keys[:10]:
                writer.put(Ended(key, "accepted", bytes(1000)))
            writer.put(Delivered(tuple(keys[:10])))
            for key in keys[10:]:
                writer.put(Ended(key, "failed"))
            writer.flush(LONG_S)
        with sqlite3.connect(directory / "journal.sqlite") as connection:
            rows += connection.execute("SELECT count(*) FROM log").fetchone()
        connection.close()
    assert max(rows) < 2 * 20 + 61, "what is live, and what one life writes"


def test_what_nobody_commits_is_warned_of_at_each_doubling(
    store: Store, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(upkeep_module, "_MUCH", 1000)
    with Writer(store) as writer:
        for number in range(10):
            if number == 7:
                writer.put(Committed(1))
            writer.put(Ended(f"0:{number}", "accepted", bytes(600)))
            writer.flush(LONG_S)
    lines = [line for line in log_lines.of("warning") if line.startswith("journal_uncommitted")]
    assert [line.partition("=")[2] for line in lines] == ["1200", "2400", "4200", "1200"]


def test_a_trajectory_of_a_hundred_megabytes(store: Store) -> None:
    with Writer(store) as writer:
        writer.put(Queued("0:0", 0))
        writer.put(Ended("0:0", "accepted"), {"x": np.arange(100 * 2**20 // 8)})
        writer.put(Committed(1))
        writer.flush(40.0)
    found = unpack(left_by(writer, store, 1).finished[0].result)["x"]
    assert found[-1] == 100 * 2**20 // 8 - 1


@pytest.mark.any_loop
def test_what_waits_when_the_interpreter_exits_is_written(run_script: RunScript, directory: Path) -> None:
    script = run_script(
        """
        import sys
        from areal_core._journal.records import *
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store
        from areal_core._journal.writer import Writer

        store = Store(sys.argv[1])
        store.open()
        store.read()
        writer = Writer(store)
        for number in range(2000):
            writer.put(Queued(f"0:{number}", 0, bytes(1000)))
        writer.put(Committed(7))
        """,
        str(directory),
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "", "")
    with Store(directory) as store:
        assert len(store.read(7).pending) == 2000


@pytest.mark.any_loop
def test_a_full_disk_keeps_no_interpreter_from_exiting_and_is_told(
    run_script: RunScript, directory: Path
) -> None:
    script = run_script(
        """
        import resource, signal, sys
        from areal_core._journal.records import *
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store
        from areal_core._journal.writer import Writer

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(sys.argv[1])
        store.open()
        store.read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        writer = Writer(store)
        writer.put(Committed(1))
        writer.flush()
        writer.put(Queued("0:0", 0, bytes(1_000_000)))
        try:
            writer.flush()
        except JournalError:
            print("refused")
        """,
        str(directory),
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout) == (0, "refused\n")
    assert script.stderr.startswith("journal_not_written error=")
    assert script.stderr.endswith(" lost=1\n")
    with Store(directory) as store:
        assert store.steps() == [1]


def test_a_disk_that_has_room_again_is_written(store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Writer(store) as writer:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            for number in range(30):
                writer.put(Queued(f"0:{number}", 0, bytes(10_000)))
            with pytest.raises(JournalError, match="could not be written"):
                writer.flush(LONG_S)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, old)
        writer.put(Committed(1))
        writer.flush(LONG_S)
    assert [one.key for one in left_by(writer, store, 1).pending] == [f"0:{number}" for number in range(30)]


@pytest.mark.any_loop
def test_a_ctrl_c_in_flush_comes_through_and_nothing_is_lost(run_script: RunScript, directory: Path) -> None:
    script = run_script(
        """
        import os, signal, sys, threading
        from areal_core._journal import crash_points
        from areal_core._journal.records import *
        from areal_core.errors import JournalError
        from areal_core._journal.store import Store
        from areal_core._journal.writer import Writer

        go = threading.Event()

        def hook(name):
            if name == "before_fsync":
                os.kill(os.getpid(), signal.SIGINT)
                go.wait()

        signal.signal(signal.SIGINT, signal.default_int_handler)
        store = Store(sys.argv[1])
        store.open()
        store.read()
        writer = Writer(store)
        crash_points.hook = hook
        writer.put(Committed(7))
        try:
            writer.flush()
        except KeyboardInterrupt:
            print("interrupted")
        crash_points.hook = None
        go.set()
        writer.flush()
        writer.close()
        with Store(sys.argv[1]) as store:
            print(store.steps())
        """,
        str(directory),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "interrupted\n[7]\n", "")
