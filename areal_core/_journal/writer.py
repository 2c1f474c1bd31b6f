"""Take records without waiting, and have one thread write them: `Writer`."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from areal_core import _process
from areal_core._checks import check_integer
from areal_core._journal.fitting import NOTHING, check_record, packed_with, size_of, without_bytes
from areal_core._journal.flush import Flush
from areal_core._journal.records import Committed, Record
from areal_core._journal.store import Store, check_step
from areal_core._journal.telling import Lines, Say
from areal_core._journal.upkeep import Upkeep
from areal_core._log import describe
from areal_core._runner import exit_hook
from areal_core.errors import JournalError

_BATCH_RECORDS = 1_000  # in a transaction: beyond that a larger one is no faster
_BATCH_BYTES = 32 * 2**20
_GATHER_S = 0.02  # for which more may come, unless somebody waits: each transaction has its own cost
_FIRST_DELAY_S = 0.05  # before a write that failed is tried again; then twice as long each time
_LONGEST_DELAY_S = 5.0


class Writer:
    """Write records to *store* in the order of the calls, beside the event loop.

    `put` never waits for the disk. A thread writes all that waits, in one transaction after the other, some
    milliseconds after the first of it was put; with nothing to write there is none at work. `flush` waits
    until what was put before is durable; a thread where a Ctrl-C may come has another one call `ask_flush`,
    and waits for what that returned. A write that fails is logged, and tried again with growing delays, up
    to 5 s. Nothing is dropped for it, except of what comes when too much waits: see `put`.

    Give it an open *store* that was read. From then on the store is the writer's, and `close` closes it:
    whoever is last does that, the caller or the thread. Nobody else is to use it, and its own ``close`` does
    nothing. What was put when the interpreter exits is written first. In a forked child, `put` and `close`
    do nothing.

    Lines are logged with *logger*, a structlog or a standard logger (None: ours), by the thread and in
    `close`, and never while a lock is held. Those of `put` and `ask_flush`, whose caller may hold locks of
    its own, are given to ``say(level, event, fields)``, which must only queue them; None: they are logged
    there as well.
    """

    def __init__(
        self,
        store: Store,
        *,
        logger: Any = None,
        say: Say | None = None,
        max_waiting_bytes: int = 256 * 2**20,
    ) -> None:
        self._store = store
        self._most = check_integer("max_waiting_bytes", max_waiting_bytes, least=1)
        self._lines = Lines(logger, say)
        self._upkeep = Upkeep(store, self._lines)
        """Its thread's alone."""
        self._home = _process.home()
        # Not a daemon's: the interpreter joins its thread, after that has written all that waits.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="areal-journal")
        self._changed = threading.Condition()
        # It guards all below.
        self._waiting: deque[tuple[Record, int]] = deque()
        """With the bytes in each. They leave when they are durable."""
        self._is_drained = True
        """Whether no thread writes, nor is asked to."""
        self._last_step = store.last_step
        self._put = 0
        self._durable = 0
        """How many of those that were put are durable, or given up."""
        self._attempts = 0
        self._failure: tuple[int, JournalError] | None = None
        """The attempt that failed last, if it was the last."""
        self._flushes: list[Flush] = []
        self._hurry = False
        """Whether somebody waits, so that the next attempt should not."""
        self._leaving = False
        self._closed = False
        self._is_left_alone = False
        """Whether `close` waits no more, so that the thread has to close the store."""
        self._is_last = False
        """Whether the thread has only the store to close; its own alone."""
        self._is_store_claimed = False
        """Whether somebody closes it, or did."""
        self.waiting_bytes = 0
        """Bytes of data and results that wait to be written."""
        self.left_out = 0
        """How many results and items of data were left out: too much waited, or they cannot be written."""
        self.failed = 0
        """How many attempts to write have failed."""
        self.lost = 0
        """How many records were given up: at the end, or put after it."""
        exit_hook.add(self)
        store.give_to(self)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def put(self, record: Record, value: Any = NOTHING) -> None:
        """Have *record* written after all that was put before. Any thread may call.

        *value* is packed at once as the data of a Queued, or the result of an accepted Ended, so that nobody
        can change it; give ready bytes in the record instead, to pack elsewhere. An item of data that cannot
        be packed is written as one that the dataloader has to give again, and so is one with which more than
        max_waiting_bytes would wait; an accepted Ended is left out, as if it had not ended. Both are counted
        in `left_out`, and told at the 1st, 2nd, 4th, ... time.

        Raises ValueError for a commit that is not above the last, TypeError for what is no record.
        """
        if self._home is not _process.home():  # the lock may be held by a thread that is not here
            return
        check_record(record)
        packed, why = packed_with(record, value)
        with self._changed:
            if isinstance(packed, Committed):
                check_step(packed.step, self._last_step)
                self._last_step = packed.step
            if packed is not None and why is None:
                packed, why = self._fitting(packed)
            if packed is not None:
                self._add(packed)
            if why is not None:
                self._count_left_out(why)
        self._lines.say()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was put before is durable.

        Raises JournalError, with the reason, when an attempt that began after the call fails, TimeoutError
        after *timeout* seconds (None: waits as long as it takes). What waits is still tried again.
        """
        self.ask_flush().wait(timeout)

    def ask_flush(self) -> Flush:
        """Have what was put before written now; return what to wait for. Raises JournalError in a fork."""
        if self._home is not _process.home():
            raise JournalError("the journal's writer belongs to another process; make an executor here")
        with self._changed:
            flush = Flush(self._put, self._attempts)
            self._flushes.append(flush)
            self._hurry = True
            self._wake()
            self._changed.notify_all()
            self._answer_flushes()
        self._lines.say()
        return flush

    def close(self, timeout: float | None = 10.0) -> None:
        """Write what waits, end the thread, and close the store. Raises nothing.

        What fails now is given up, counted in `lost`, and logged. After *timeout* seconds (None: waits as
        long as it takes) a thread that still writes is left alone with it, and closes the store at its end:
        until then the directory is in use. What is put from here on is lost and logged. A second call only
        waits for the end, as long as it may.
        """
        if self._home is not _process.home():
            return
        with self._changed:
            self._closed = self._leaving = True
            self._wake()
            self._changed.notify_all()
            is_drained = self._changed.wait_for(lambda: self._is_drained, timeout)
            is_mine = self._is_mine_to_close(is_drained, timeout)
        self._pool.shutdown(wait=is_drained)
        exit_hook.discard(self)
        if is_mine:
            self._close_store()
        self._lines.log()

    def _is_mine_to_close(self, is_drained: bool, timeout: float | None) -> bool:
        """Return whether the caller closes the store; with the lock, so that the thread knows who does."""
        if not is_drained:
            self._is_left_alone = True
            self._lines.add("warning", "journal_still_writing", waited_s=timeout, records=len(self._waiting))
            return False
        if self._waiting and self._failure is not None:  # there was no thread to be had for it
            self._give_up(self._failure[1])
            self._answer_flushes()
        return self._claims_store()

    def _claims_store(self) -> bool:
        """Return whether nobody else closes the store; with the lock."""
        is_free, self._is_store_claimed = not self._is_store_claimed, True
        return is_free

    def _close_store(self) -> None:
        try:
            self._store.close_for(self)
        except Exception as error:
            self._lines.add("error", "journal_not_closed", error=describe(error))

    def is_at_work(self) -> bool:
        """Return whether the thread may be using the store."""
        return not self._is_drained

    def leave(self, deadline: float) -> None:
        """Begin to end: a write that fails from here on is not tried for long. For the interpreter's exit."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()

    def join(self, deadline: float) -> None:
        """Do nothing: the interpreter joins the thread after this."""

    def _fitting(self, record: Record) -> tuple[Record | None, str | None]:
        """Return what of *record* may wait, and why not all of it."""
        size = size_of(record)
        if not size or not self._is_too_much(size):
            return record, None
        return without_bytes(record), f"more than max_waiting_bytes={self._most} would be waiting"

    def _is_too_much(self, size: int) -> bool:
        """Return whether so many more bytes may not wait. Alone any may."""
        return self.waiting_bytes > 0 and self.waiting_bytes + size > self._most

    def _add(self, record: Record) -> None:
        if self._closed:
            self._count_lost(1, "closed")
            return
        size = size_of(record)
        self._waiting.append((record, size))
        self.waiting_bytes += size
        self._put += 1
        self._wake()

    def _wake(self) -> None:
        """Have a thread write what waits, if none does."""
        if not self._is_drained or not self._waiting:
            return
        try:
            self._pool.submit(self._drain)
        except RuntimeError as error:  # the interpreter exits, or is out of threads
            self._count_failed(JournalError(f"the journal has no thread to write with: {error}"))
        else:
            self._is_drained = False

    def _drain(self) -> None:
        delay = _FIRST_DELAY_S
        while batch := self._next_batch():
            failure = self._try_to_write(batch)
            if failure is None:
                self._count_durable(len(batch))
                self._upkeep.after(batch)
            self._lines.log()
            if failure is None:
                delay = _FIRST_DELAY_S
            elif self._waits_to_retry(delay):
                delay = min(2 * delay, _LONGEST_DELAY_S)
        if self._is_last:
            self._end()

    def _end(self) -> None:
        with self._changed:
            is_mine = self._claims_store()
        if is_mine:
            self._close_store()
            self._lines.log()
        with self._changed:
            self._is_drained = True
            self._changed.notify_all()

    def _next_batch(self) -> list[Record]:
        """Return the oldest records, none if no more wait: who puts the next one has to wake a thread."""
        with self._changed:
            if self._waiting:
                self._changed.wait_for(self._is_enough, _GATHER_S)
            self._is_last = self._is_left_alone and not self._waiting
            self._is_drained = not self._waiting and not self._is_last
            self._attempts += bool(self._waiting)
            self._hurry = False
            batch, size = list[Record](), 0
            for record, bytes_in_it in islice(self._waiting, _BATCH_RECORDS):
                if batch and size + bytes_in_it > _BATCH_BYTES:
                    break
                batch.append(record)
                size += bytes_in_it
            self._changed.notify_all()
        return batch

    def _is_enough(self) -> bool:
        """Return whether what waits is to be written now."""
        return self._hurry or self._leaving or len(self._waiting) >= _BATCH_RECORDS

    def _try_to_write(self, batch: list[Record]) -> JournalError | None:
        leaving = self._leaving
        try:
            self._store.append(batch)
        except JournalError as error:
            return self._failed(error, leaving)
        except Exception as error:
            told = JournalError(f"the journal could not be written: {describe(error)}")
            told.__cause__ = error
            return self._failed(told, leaving)
        return None

    def _failed(self, error: JournalError, leaving: bool) -> JournalError:
        with self._changed:
            self._count_failed(error)
            if leaving:
                self._give_up(error)
            self._changed.notify_all()
            self._answer_flushes()
        return error

    def _waits_to_retry(self, delay: float) -> bool:
        """Wait for as long as *delay* seconds; return whether that was so, and nobody was in a hurry."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._hurry or self._leaving, delay)

    def _count_durable(self, count: int) -> None:
        with self._changed:
            self._forget(count)
            if self._failure is not None:
                self._failure = None
                self._lines.add("info", "journal_written_again", failed=self.failed)
            self._changed.notify_all()
            self._answer_flushes()

    def _count_failed(self, error: JournalError) -> None:
        is_first = self._failure is None
        self.failed += 1
        self._failure = self._attempts, error
        if is_first:
            self._lines.add("warning", "journal_not_written", error=str(error), waiting=len(self._waiting))

    def _give_up(self, error: JournalError) -> None:
        count = len(self._waiting)
        self._forget(count)
        self._count_lost(count, str(error))

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self.waiting_bytes -= self._waiting.popleft()[1]
        self._durable += count

    def _count_left_out(self, why: str) -> None:
        self.left_out += 1
        if _is_told(self.left_out):
            self._lines.add("warning", "journal_left_out", why=why, left_out=self.left_out)

    def _count_lost(self, count: int, why: str) -> None:
        before, self.lost = self.lost, self.lost + count
        if self.lost.bit_length() > before.bit_length():
            self._lines.add("error", "journal_lost", why=why, lost=self.lost)

    def _answer_flushes(self) -> None:
        """Tell those who wait what is known by now; with the lock."""
        waiting, self._flushes = self._flushes, []
        for flush in waiting:
            if self._durable >= flush.target:
                lost = JournalError(f"{self.lost} records of the journal were lost; see the log")
                flush.answer(lost if self.lost else None)
            elif self._failure is not None and (self._failure[0] > flush.attempts or self._is_drained):
                flush.answer(self._failure[1])
            else:
                self._flushes.append(flush)


def _is_told(count: int) -> bool:
    """Return whether *count* is a power of two: one that runs fast fills no log."""
    return count & (count - 1) == 0
