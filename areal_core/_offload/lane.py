"""Threads that make calls, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, TypeVar

from areal_core import _record
from areal_core._offload.shortage import Shortage
from areal_core._offload.stats import OffloadStats, processors

T = TypeVar("T")
_Outcome = tuple[Any, BaseException | None]
"""What a call returned, or else what it raised."""


class LimitExceededError(Exception):
    """A call took longer than it may."""


class Ticket:
    """Stands for a call in a thread; any thread can look whether it has ended."""

    ended = False
    took_s = 0.0
    """How long the call took in its thread, when it has ended."""
    computed_s = 0.0
    """For how much of that the thread had a processor."""


_abandoned: set[Ticket] = set()


def abandoned_threads() -> int:
    """Return how many threads of this process still make a call that nobody waits for any more."""
    return sum(not ticket.ended for ticket in _abandoned.copy())


class _Job(NamedTuple):
    """A call, and whom to tell what became of it."""

    context: contextvars.Context
    call: Callable[[], Any]
    ticket: Ticket
    tell: Callable[[_Outcome], object]


class _Hand:
    """A daemon thread: one that never comes back from a call is not to hold up the interpreter's end."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self.thread = threading.Thread(
            target=_work, args=(self.inbox,), name="areal-core-offload", daemon=True
        )
        self.thread.start()
        # It goes on waiting where a loop is dropped without being closed.
        weakref.finalize(self, self.inbox.put, None).atexit = False


def _work(inbox: SimpleQueue[_Job | None]) -> None:
    while (job := inbox.get()) is not None:
        begun, computed = time.monotonic(), time.thread_time()
        outcome = _outcome(job)
        job.ticket.took_s = time.monotonic() - begun
        job.ticket.computed_s = time.thread_time() - computed
        job.ticket.ended = True
        try:
            job.tell(outcome)
        except RuntimeError:
            pass  # the loop is closed
        del job, outcome  # not to be kept until the next call


def _outcome(job: _Job) -> _Outcome:
    try:
        return job.context.run(job.call), None
    except BaseException as error:
        return None, error


class Lane:
    """Threads for calls, which each take a turn first; turns are given in the order they were asked for."""

    def __init__(self, place: Literal["thread", "process"], most: int) -> None:
        self.turns = asyncio.Semaphore(most)
        self.place = place
        self.waits: dict[object, float] = {}
        """Since when each call waits that has no turn, the first one first."""
        self.made = 0
        """Calls that have a turn."""
        self.begun = 0
        self.waited_s = 0.0
        self.took_s = 0.0
        self.computed_s = 0.0
        self.busy: set[_Hand] = set()
        self._most = most
        self._idle: list[_Hand] = []
        self._dismissed = False
        self._shortage = Shortage(most, self.stats)

    def note(self) -> None:
        """Note that another call waits, or has a turn, or does so no more."""
        self._shortage.note(time.monotonic(), self.made, len(self.waits))

    def stats(self) -> OffloadStats:
        """Return what is done; from any thread."""
        waits = tuple(self.waits.values())  # in one step: the loop goes on meanwhile
        return OffloadStats(
            place=self.place,
            workers=self._most,
            busy=self.made,
            waiting=len(waits),
            longest_wait_s=time.monotonic() - waits[0] if waits else 0.0,
            calls=self.begun,
            waited_s=self.waited_s,
            took_s=self.took_s,
            computed_s=self.computed_s,
            processors=processors(),
        )

    async def run(self, call: Callable[[], T], limit_s: float | None, ticket: Ticket) -> T:
        """Return what *call* returns in a thread, in the context of the caller, or raise what it raises.

        Raises LimitExceededError after *limit_s* seconds (None: no limit), RuntimeError where no thread
        can be started.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Outcome | None] = loop.create_future()
        try:
            hand = self._idle.pop() if self._idle else _Hand()
        except BaseException:
            ticket.ended = True  # it has not begun, and there is nothing to be left behind
            raise
        self.busy.add(hand)
        take_back = partial(self._take_back, hand, answer, ticket)
        tell = partial(loop.call_soon_threadsafe, take_back)
        hand.inbox.put(_Job(contextvars.copy_context(), call, ticket, tell))
        timer = None if limit_s is None else loop.call_later(limit_s, _expire, answer)
        try:
            outcome = await answer
        finally:
            if timer is not None:
                timer.cancel()
        value: T = _unpacked(outcome)
        return value

    def _take_back(
        self,
        hand: _Hand,
        answer: asyncio.Future[_Outcome | None],
        ticket: Ticket,
        outcome: _Outcome,
    ) -> None:
        self.busy.discard(hand)
        if self.place == "thread":  # else the thread only attends to a worker
            self.took_s += ticket.took_s
            self.computed_s += ticket.computed_s
        if self._dismissed or len(self._idle) >= self._most:  # abandoned once, and replaced
            hand.inbox.put(None)
        else:
            self._idle.append(hand)
        if not answer.done():
            answer.set_result(outcome)

    def dismiss(self) -> list[_Hand]:
        """End each thread when it has nothing more to do; return those that have nothing now."""
        self._dismissed = True
        idle, self._idle = self._idle, []
        for hand in (*idle, *self.busy):
            hand.inbox.put(None)
        return idle


class Turn:
    """The turn of one call. The record of its episode says whether it waits for it, or has it."""

    __slots__ = ("_lane", "_record", "_stage")

    def __init__(self, lane: Lane) -> None:
        record = _record.current.get()
        # One that has ended has been told of already, and only cleans up.
        self._record = None if record is None or record.stage == _record.ENDED else record
        self._lane = lane
        self._stage = _record.OFFLOADED
        if record is not None and record.stage in (_record.REWARDED, _record.JUDGED):
            self._stage = record.stage

    async def __aenter__(self) -> None:
        lane = self._lane
        if lane.turns.locked():
            await self._wait()
        else:
            await lane.turns.acquire()  # at once
        lane.made += 1
        lane.begun += 1
        lane.note()
        if self._record is not None and self._record.stage != self._stage:
            self._record.enter(self._stage)

    async def __aexit__(self, *_: object) -> None:
        self._lane.made -= 1
        self._lane.note()
        self._lane.turns.release()
        self._leave(_record.OFFLOADED)

    async def _wait(self) -> None:
        lane, stage = self._lane, _record.WAITING_FOR_WORKER + self._lane.place
        if self._record is not None:
            self._record.enter(stage)
        lane.waits[self] = began = time.monotonic()
        lane.note()
        try:
            await lane.turns.acquire()
        except BaseException:
            self._leave(stage)
            raise
        finally:
            del lane.waits[self]
            lane.note()
        lane.waited_s += time.monotonic() - began

    def _leave(self, stage: str) -> None:
        """Let the record go back from *stage*, unless it is in another by now."""
        if self._record is not None and self._record.stage == stage:
            self._record.enter(_record.PLAYING if self._stage == _record.OFFLOADED else self._stage)


def _expire(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_result(None)


def _unpacked(outcome: _Outcome | None) -> Any:
    if outcome is None:
        raise LimitExceededError
    value, error = outcome
    try:
        if error is not None:
            raise error
        return value
    finally:
        del outcome, error  # its traceback refers to this frame


def abandon(ticket: Ticket) -> None:
    if not ticket.ended:
        _abandoned.difference_update([one for one in _abandoned if one.ended])
        _abandoned.add(ticket)


def join(hands: Iterable[_Hand], until: float) -> None:
    for hand in hands:
        hand.thread.join(max(0.0, until - time.monotonic()))
