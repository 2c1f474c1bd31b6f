"""A journal's writer step by step: what it takes, how long it waits for more and after a failure, who closes.

In most of these no thread writes: the test itself does what the thread was asked to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import pytest

from areal_core import _process
from areal_core._journal import writer as module
from areal_core._journal.records import Queued, Record
from areal_core._journal.store import Store
from areal_core._journal.writer import Writer
from areal_core._runner import exit_hook
from areal_core.errors import JournalError
from doors import LONG_S
from logged import LogLines

T = TypeVar("T")

PIECE = bytes(2**24)


class Turns(threading.Condition):
    """Nobody waits at it: `meanwhile` is called instead, once, and who is not woken by that was late."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self.meanwhile: Callable[[], object] | None = None
        self._calls = 0

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        if found := predicate():
            return found
        self.waits.append(timeout)
        before = self._calls
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is None:
            return found
        meanwhile()
        assert self._calls > before, "it was not woken"
        return predicate()

    def notify_all(self) -> None:
        self._calls += 1
        super().notify_all()


class Stage:
    """A writer without a thread, and what it writes, to no disk: each of *outcomes* is that of an attempt."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.outcomes: list[Exception | None] = []
        self.batches: list[list[Record]] = []
        self.asked: list[Callable[[], None]] = []
        """What the thread is asked to do."""
        self.writer = Writer(store, **options)
        self.turns = self.writer._changed = Turns()
        self.refuses = False
        """Whether there is no thread to be had."""
        monkeypatch.setattr(store, "append", self._append)
        monkeypatch.setattr(self.writer._pool, "submit", self._submit)

    def _append(self, records: list[Record]) -> None:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        self.batches.append(records)

    def _submit(self, work: Callable[[], None]) -> None:
        if self.refuses:
            raise RuntimeError("can't start new thread")
        self.asked.append(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.outcomes = []
        self.writer.close(0.0)
        self.write()

    def put(self, *records: Record) -> Self:
        for record in records or [Queued("0:a", 0)]:
            self.writer.put(record)
        return self

    def write(self) -> None:
        """Do what the thread was asked to."""
        asked, self.asked = self.asked, []
        for work in asked:
            work()

    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.fixture
def stage(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with Stage(store, monkeypatch) as made:
        yield made


class Unclosable:
    """A connection whose ``close`` fails once it has closed it."""

    def __init__(self, connection: Any) -> None:
        self.close_it = connection.close

    def close(self) -> None:
        self.close_it()
        raise OSError("odd")


def unclosed(store: Store) -> str:
    """Return the line that tells of it."""
    directory = store.path.parent
    return f"journal_not_closed error=JournalError: the journal in {directory} could not be closed: odd"


# -- what waits, and the transactions it comes to --------------------------------------------------


def test_256_megabytes_may_wait_and_not_a_byte_more(stage: Stage) -> None:
    stage.put(*[Queued("0:a", 0, PIECE)] * 16)
    assert (stage.writer.waiting_bytes, stage.writer.left_out) == (2**28, 0)
    stage.put(Queued("0:b", 0, b"d"))
    assert (stage.writer.waiting_bytes, stage.writer.left_out) == (2**28, 1)


def test_where_one_byte_may_wait_no_second_may(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stage(store, monkeypatch, max_waiting_bytes=1) as stage:
        stage.put(*[Queued("0:a", 0, b"d")] * 2)
        assert (stage.writer.waiting_bytes, stage.writer.left_out) == (1, 1)


def test_a_byte_at_least_may_wait(store: Store) -> None:
    with pytest.raises(ValueError, match=r"^max_waiting_bytes=0 is below 1; give an integer of at least 1$"):
        Writer(store, max_waiting_bytes=0)


@pytest.mark.parametrize(
    ("count", "sizes", "waits"), [(2_000, [1_000, 1_000], []), (1_999, [1_000, 999], [0.02])]
)
def test_a_thousand_records_are_a_transaction_and_for_fewer_more_are_waited_for(
    stage: Stage, count: int, sizes: list[int], waits: list[float]
) -> None:
    stage.put(*[Queued("0:a", 0)] * count).write()
    assert (stage.sizes(), stage.turns.waits) == (sizes, waits)


def test_32_megabytes_are_a_transaction_and_what_comes_after_them_is_the_next(stage: Stage) -> None:
    sizes = [len(PIECE), len(PIECE), 1, 0]
    stage.put(*[Queued("0:a", number, PIECE[:size]) for number, size in enumerate(sizes)]).write()
    epochs = [[one.epoch for one in batch if isinstance(one, Queued)] for batch in stage.batches]
    assert epochs == [[0, 1], [2, 3]]


def test_a_thread_is_asked_once_for_all_that_is_put(stage: Stage) -> None:
    stage.put().put()
    stage.writer.ask_flush()
    assert len(stage.asked) == 1 and stage.writer.is_at_work()


def test_a_thread_is_not_asked_where_nothing_waits(stage: Stage) -> None:
    stage.writer.ask_flush()
    assert not stage.asked and not stage.writer.is_at_work()


def test_there_is_one_thread_and_it_has_a_name(store: Store) -> None:
    before, opened = set(threading.enumerate()), threading.Event()
    with Writer(store) as writer:
        for _ in range(2):
            writer._pool.submit(opened.wait, LONG_S)
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        opened.set()
    assert names == ["areal-journal_0"]


# -- how long it waits -----------------------------------------------------------------------------


hurries = pytest.mark.parametrize(
    "hurry", [Writer.ask_flush, lambda writer: writer.leave(0.0)], ids=["flush", "exit"]
)


@hurries
def test_more_is_not_waited_for_in_a_hurry(stage: Stage, hurry: Callable[[Writer], object]) -> None:
    stage.put()
    hurry(stage.writer)
    stage.write()
    assert (stage.sizes(), stage.turns.waits) == ([1], [])


@hurries
def test_who_waits_for_more_is_woken_by_a_hurry(stage: Stage, hurry: Callable[[Writer], object]) -> None:
    stage.turns.meanwhile = lambda: hurry(stage.writer)
    stage.put().write()
    assert (stage.sizes(), stage.turns.waits) == ([1], [0.02])


def test_a_failed_write_is_tried_again_after_twice_as_long_each_time_and_5_s_at_most(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_RECORDS", 1)  # so that more is never waited for
    odd = OSError("odd")
    stage.outcomes = [*[odd] * 9, None, odd, odd]
    stage.put().put().write()
    assert stage.turns.waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.05, 0.1]


def test_a_flush_wakes_who_waits_to_try_again_for_that_one_time(stage: Stage) -> None:
    stage.outcomes = [OSError("odd"), OSError("odd")]
    stage.put().writer.ask_flush()
    stage.turns.meanwhile = stage.writer.ask_flush
    stage.write()
    assert stage.turns.waits == [0.05, 0.05, 0.02], "the second time after as long, and then for more"


# -- what is told ----------------------------------------------------------------------------------


def test_a_failure_is_told_with_how_much_waits_and_its_end_as_well(stage: Stage, log_lines: LogLines) -> None:
    stage.outcomes = [JournalError("the disk is full"), OSError("odd")]
    stage.put().put().write()
    assert [(line.level, line.message) for line in log_lines] == [
        ("warning", "journal_not_written error=the disk is full waiting=2"),
        ("info", "journal_written_again failed=2"),
    ]


def test_who_waits_for_a_write_is_told_the_error_behind_its_failure(stage: Stage) -> None:
    error = OSError("odd")
    stage.outcomes = [error]
    flush = stage.put().writer.ask_flush()
    stage.write()
    assert flush.failure is not None and flush.failure.__cause__ is error


@pytest.mark.parametrize("error", [JournalError("the disk is full"), OSError("odd")], ids=repr)
def test_what_fails_when_the_interpreter_exits_is_given_up(stage: Stage, error: Exception) -> None:
    stage.outcomes = [error]
    stage.put().writer.leave(0.0)
    stage.write()
    assert (stage.writer.lost, stage.batches) == (1, [])


# -- its end ---------------------------------------------------------------------------------------


def test_the_interpreters_exit_ends_it_unless_it_is_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: set[exit_hook.Endable] = set()
    monkeypatch.setattr(exit_hook, "_live", lives)
    with Writer(store) as writer:
        assert lives == {writer}
    assert not lives


def test_closing_wakes_who_waits_for_more_and_leaves_it_the_store_after_10_s(
    stage: Stage, store: Store, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(store, "_connection", Unclosable(store._connection))
    stage.turns.meanwhile = stage.writer.close
    stage.put().write()
    assert stage.sizes() == [1] and not stage.writer.is_at_work()
    assert [(line.level, line.message) for line in log_lines] == [
        ("warning", "journal_still_writing waited_s=10.0 records=1"),
        ("error", unclosed(store)),
    ]


def test_closing_tells_what_fails_of_it(
    stage: Stage, store: Store, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    monkeypatch.setattr(store, "_connection", Unclosable(store._connection))
    stage.writer.close()
    assert [(line.level, line.message) for line in log_lines] == [("error", unclosed(store))]


def test_the_store_is_closed_once(stage: Stage, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Writer] = []
    close = store.close_for
    monkeypatch.setattr(store, "close_for", closed.append)
    stage.writer.close()
    stage.writer.close()
    close(stage.writer)
    assert closed == [stage.writer]


def test_closing_waits_for_the_threads_end(store: Store) -> None:
    opened = threading.Event()
    writer = Writer(store)
    working = writer._pool.submit(opened.wait, LONG_S)
    threading.Timer(0.02, opened.set).start()
    writer.close()
    assert working.done()


def test_closing_has_a_thread_write_what_there_was_none_for(stage: Stage) -> None:
    stage.refuses = True
    stage.put()
    stage.refuses, stage.turns.meanwhile = False, stage.write
    stage.writer.close()
    assert (stage.sizes(), stage.writer.lost) == ([1], 0)


def test_in_a_forked_child_nothing_is_put_nor_flushed_nor_closed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as forked:
        forked.setattr(_process, "_home", object())
        stage.put(Queued("0:a", 0, b"d"))
        with pytest.raises(JournalError, match="the journal's writer belongs to another process; make an"):
            stage.writer.ask_flush()
        stage.writer.close(0.0)
    assert stage.writer.waiting_bytes == 0
    stage.put().write()
    assert stage.sizes() == [1]
