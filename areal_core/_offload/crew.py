"""Who makes the offloaded calls of one loop: threads, and worker processes. Ends with the loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from areal_core._offload.worker import Worker
from areal_core.loop_cleanup import register_loop_cleanup

T = TypeVar("T")
_Outcome = tuple[Any, BaseException | None]
"""What a call returned, or else what it raised."""

_ATTRIBUTE = "_areal_core_offload"
_PROCESSES = os.cpu_count() or 1
_THREADS = min(32, _PROCESSES + 4)  # as many as asyncio.to_thread has: many wait rather than compute
_JOINED_S = 1.0  # at the loop's close, for threads that have nothing to do any more
_LOADED_S = 120.0  # to start and to import: with torch, from a busy network drive, that may be a minute


class LimitExceededError(Exception):
    """A call took longer than it may."""


class Ticket:
    """Stands for a call in a thread; any thread can look whether it has ended."""

    ended = False


_abandoned: set[Ticket] = set()


def abandoned_threads() -> int:
    """Return how many threads of this process still make a call that nobody waits for any more."""
    return sum(not ticket.ended for ticket in _abandoned.copy())


class Crew:
    """The threads and worker processes of one loop. Used on that loop alone, while it runs."""

    @classmethod
    def here(cls) -> Crew:
        """Return the crew of the running loop, made when it is first asked for."""
        loop = asyncio.get_running_loop()
        crew: Crew | None = vars(loop).get(_ATTRIBUTE)
        if crew is None:
            crew = cls(loop)
            register_loop_cleanup(crew._close)
            vars(loop)[_ATTRIBUTE] = crew
        return crew

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = _Lane(_THREADS)
        self._attendants = _Lane(_PROCESSES)  # each makes exchanges with a worker process, and waits
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    async def in_thread(self, call: Callable[[], T], limit_s: float | None) -> T:
        """Return what *call* returns. It goes on when this is cancelled or raises LimitExceededError."""
        ticket = Ticket()
        async with self._threads.turns:
            try:
                return await self._threads.run(call, limit_s, ticket)
            except BaseException:
                _abandon(ticket)
                raise

    async def in_process(
        self, name: str, call: tuple[Callable[..., T], tuple[Any, ...], dict[str, Any]], limit_s: float | None
    ) -> T:
        """Return what *call* (function, args, kwargs) returns in a worker process.

        The process is killed when this is cancelled or raises LimitExceededError.
        """
        async with self._attendants.turns:
            worker = self._free_worker()
            self._busy.add(worker)
            try:
                if name not in worker.known:
                    await self._load(worker, name, call[0])
                exchange = partial(worker.call, name, *call)
                return await self._attend(worker, exchange, limit_s)
            finally:
                self._busy.discard(worker)
                if worker.alive:
                    self._idle.append(worker)

    async def _load(self, worker: Worker, name: str, function: Callable[..., object]) -> None:
        try:
            await self._attend(worker, partial(worker.load, name, function), _LOADED_S)
        except LimitExceededError:
            raise TimeoutError(
                f"no worker process had started and imported {name} within {_LOADED_S:g} s; "
                "see what the import of its module does"
            ) from None
        worker.known.add(name)

    async def _attend(self, worker: Worker, exchange: Callable[[], T], limit_s: float | None) -> T:
        ticket = Ticket()
        try:
            return await self._attendants.run(
                partial(_see_through, worker, exchange, ticket), limit_s, ticket
            )
        except BaseException:
            was_over = ticket.ended
            if not was_over:
                worker.kill()
                if ticket.ended:  # meanwhile: its attendant may or may not have seen that
                    worker.reap()
            raise

    def _free_worker(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()  # the last one: the others' memory may be swapped out
            if worker.is_running():
                return worker
            worker.reap()
        return Worker()

    def _close(self) -> None:
        """End all threads and processes, when the loop is closed; a call that comes later has a new crew."""
        vars(self._loop).pop(_ATTRIBUTE, None)
        for worker in (*self._idle, *self._busy):
            worker.kill()
        for worker in self._idle:
            worker.reap()
        until = time.monotonic() + _JOINED_S
        _join(self._threads.dismiss(), until)
        _join([*self._attendants.dismiss(), *self._attendants.busy], until)


def _see_through(worker: Worker, exchange: Callable[[], T], ticket: Ticket) -> T:
    """Make *exchange* in an attendant, and clean up after the worker if it was killed."""
    try:
        return exchange()
    finally:
        ticket.ended = True
        if not worker.alive:
            worker.reap()


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
        outcome = _outcome(job)
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


class _Lane:
    """Threads for calls, which each take a turn first; turns are given in the order they were asked for."""

    def __init__(self, most: int) -> None:
        self.turns = asyncio.Semaphore(most)
        self.busy: set[_Hand] = set()
        self._most = most
        self._idle: list[_Hand] = []
        self._dismissed = False

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
        take_back = partial(self._take_back, hand, answer)
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
        outcome: _Outcome,
    ) -> None:
        self.busy.discard(hand)
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


def _abandon(ticket: Ticket) -> None:
    if not ticket.ended:
        _abandoned.difference_update([one for one in _abandoned if one.ended])
        _abandoned.add(ticket)


def _join(hands: Iterable[_Hand], until: float) -> None:
    for hand in hands:
        hand.thread.join(max(0.0, until - time.monotonic()))
