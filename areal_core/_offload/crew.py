"""Who makes the offloaded calls of one loop: threads, and worker processes. Ends with the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from areal_core._offload.lane import Lane, LimitExceededError, Ticket, Turn, abandon, join
from areal_core._offload.stats import OffloadStats, processors
from areal_core._offload.worker import Worker
from areal_core.loop_cleanup import register_loop_cleanup

T = TypeVar("T")

_ATTRIBUTE = "_areal_core_offload"
_PROCESSES = processors()
_THREADS = min(32, _PROCESSES + 4)  # as many as asyncio.to_thread has: many wait rather than compute
_JOINED_S = 1.0  # at the loop's close, for threads that have nothing to do any more
_LOADED_S = 120.0  # to start and to import: with torch, from a busy network drive, that may be a minute


class Most(NamedTuple):
    """How many calls are made at once on one loop; None: as many as is usual."""

    threads: int | None = None
    processes: int | None = None


_most = Most()  # for loops on which no call was made yet


def set_most(most: Most) -> None:
    """Let *most* be for the loops whose first call is still to come. Raises RuntimeError on another one."""
    global _most
    loop = asyncio._get_running_loop()
    crew: Crew | None = None if loop is None else vars(loop).get(_ATTRIBUTE)
    if crew is not None and crew.most != most:
        raise RuntimeError(
            "offloaded functions were called on this loop already, and it keeps its workers; "
            "configure before the loop's first call"
        )
    _most = most


def stats_of(loop: asyncio.AbstractEventLoop) -> tuple[OffloadStats, OffloadStats]:
    """Return what is done on *loop* in threads and in processes; from any thread."""
    crew: Crew | None = vars(loop).get(_ATTRIBUTE)
    if crew is not None:
        return crew.stats()
    threads, processes = _counts(_most)
    return (
        OffloadStats(place="thread", workers=threads, processors=processors()),
        OffloadStats(place="process", workers=processes, processors=processors()),
    )


def _counts(most: Most) -> tuple[int, int]:
    return (
        _THREADS if most.threads is None else most.threads,
        _PROCESSES if most.processes is None else most.processes,
    )


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
        self.most = _most
        threads, processes = _counts(_most)
        self._threads = Lane("thread", threads)
        # Each makes exchanges with a worker process, and waits.
        self._attendants = Lane("process", processes)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    async def in_thread(self, call: Callable[[], T], limit_s: float | None) -> T:
        """Return what *call* returns. It goes on when this is cancelled or raises LimitExceededError."""
        ticket = Ticket()
        async with Turn(self._threads):
            try:
                return await self._threads.run(call, limit_s, ticket)
            except BaseException:
                abandon(ticket)
                raise

    async def in_process(
        self, name: str, call: tuple[Callable[..., T], tuple[Any, ...], dict[str, Any]], limit_s: float | None
    ) -> T:
        """Return what *call* (function, args, kwargs) returns in a worker process.

        The process is killed when this is cancelled or raises LimitExceededError.
        """
        async with Turn(self._attendants):
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

    def stats(self) -> tuple[OffloadStats, OffloadStats]:
        """Return what is done in threads and in processes; from any thread."""
        return self._threads.stats(), self._attendants.stats()

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
        join(self._threads.dismiss(), until)
        join([*self._attendants.dismiss(), *self._attendants.busy], until)


def _see_through(worker: Worker, exchange: Callable[[], T], ticket: Ticket) -> T:
    """Make *exchange* in an attendant, and clean up after the worker if it was killed."""
    try:
        return exchange()
    finally:
        ticket.ended = True
        if not worker.alive:
            worker.reap()
