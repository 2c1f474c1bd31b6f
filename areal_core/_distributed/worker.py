"""The process of a worker: what the driver calls, each in a thread apart from the loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from areal_core._distributed.floor import Floor
from areal_core._distributed.news import News
from areal_core._distributed.outbox import Outbox
from areal_core._distributed.pace import LEAST_LINGER_S, enough
from areal_core._distributed.wire import Shipment, decode, dump_error, ship, text_of
from areal_core._executor.playing import Player
from areal_core._executor.within import within
from areal_core._log import get_logger, log
from areal_core._runner.lifecycle import life_of
from areal_core._runner.loop_thread import LoopFactory
from areal_core._watch.loop_watch import Blocked, Late, LoopWatch
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.workflow_context import ensure_descriptors

TAKES = 2
"""How many calls that fetch them are under way: while one comes here, another brings what there is."""

_OWN_TASKS = 1 << 20
_LATE_S = 1.0
"""How much later than its caller's patience a call is cancelled: the caller is the first to know."""


class Setup(Struct):
    """What makes a worker."""

    make_engine: Callable[[], Any]
    slots: int
    checks_format: bool
    masks: bool
    episode_timeout_s: float | None
    cancel_grace_s: float
    loop_factory: LoopFactory | None
    loop_block_warning_s: float | None = None


class Worker:
    """Plays episodes for an executor in another process, once `begin` was called.

    None of its methods is a coroutine function: with one, Ray would call all of them on a loop of its own.
    """

    engine: Any = None
    """That of the worker of this process; None: this process is none."""

    def __init__(self, setup: bytes, loads: Callable[[bytes], Any], dumps: Callable[[Any], bytes]) -> None:
        self._setup, self._loads, self._dumps = setup, loads, dumps
        self._returns = threading.Event()
        self._reporting = threading.Lock()
        self._reports = itertools.count()
        self._calls: dict[int, asyncio.Task[Any] | None] = {}
        self._ended_calls: set[int] = set()  # before they began

    def begin(self, has_process: bool = False) -> tuple[bytes | None, str, str] | None:
        """Make the engine and the loop; return the error of that, dumped, if there is one.

        *has_process* says that nothing but this worker is in its process.
        """
        try:
            self._begin(has_process)
        except BaseException as error:  # of the user's code, which may do anything
            return dump_error(error, self._dumps)
        return None

    def _begin(self, has_process: bool) -> None:
        made: Setup = self._loads(self._setup)
        ensure_descriptors(made.slots)
        if has_process:
            # What is there now, Ray and all modules, stays: the garbage collector need not look at it again.
            gc.collect()
            gc.freeze()
        self._engine = Worker.engine = made.make_engine()
        self._runner: AsyncTaskRunner[Any] = AsyncTaskRunner(
            _OWN_TASKS, cancel_grace=made.cancel_grace_s, loop_factory=made.loop_factory
        )
        self._runner.initialize()
        self._out = Outbox(enough(made.slots))
        player = Player(self._engine, made.checks_format, made.masks)
        self._floor = Floor(
            life_of(self._runner), player, made.slots, made.episode_timeout_s, self._out, self._loads
        )
        if made.loop_block_warning_s is not None:
            thread = life_of(self._runner).thread
            self._floor.watch = LoopWatch(
                thread.loop, thread.thread.ident or 0, made.loop_block_warning_s, _log_blocked
            )
        self._news = News(self._engine, self._floor.knows)

    def give(self, data: bytes) -> None:
        """Follow orders; *data* is `Orders`. Does nothing once the loop ends.

        An engine that does not return from what it is told keeps from its beginning what was sent with that
        or later. It holds up nothing else: that can be cancelled, and handed back. What does not return from
        being unpickled holds up all orders, and is told of as a loop that hangs.
        """
        orders = decode(data)
        self._floor.give(orders, self._news.tell(orders))
        if orders.takes_back:
            self._returns.set()
            self._out.put((), is_last=True)

    def take(self, patience_s: float, linger_s: float = LEAST_LINGER_S) -> Shipment:
        """Return what has ended, as soon as there is something, and how things are. As `Outbox.take`."""
        ended = self._out.take(patience_s, linger_s)
        if self._floor.ending is not None and not ended:
            raise RuntimeError(f"the loop of this worker has ended: {text_of(self._floor.ending.error())}")
        with self._reporting:  # what it says of stages is in the order of the numbers
            number, returned = next(self._reports), []
            if self._returns.is_set():
                self._returns.clear()
                returned = self._floor.returned()
            reading_s, unread = self._floor.reader.look()
            stalled_s = max(self._floor.stalled_s(), self._news.telling_s(), reading_s)
            stages = self._floor.stages() + unread
        return ship(ended, returned, stages, stalled_s, self._dumps, number)

    def run(self, call: bytes, number: int, timeout_s: float | None = None) -> tuple[bool, Any]:
        """Run a coroutine function on the loop; return whether it went well, and its value or error, dumped.

        It is cancelled by `end_call` with its *number*, and soon after *timeout_s* seconds in any case.
        """
        try:
            async_fn, args = self._loads(call)
            limit_s = None if timeout_s is None else timeout_s + _LATE_S
            begin = functools.partial(self._begin_call, number)
            return True, self._dumps(self._runner.run(_limited, begin, async_fn, args, limit_s))
        except BaseException as error:
            return False, dump_error(error, self._dumps)
        finally:
            self._calls.pop(number, None)
            self._ended_calls.discard(number)

    def end_call(self, number: int) -> None:
        """Cancel a call for whose value nobody waits any more."""
        with contextlib.suppress(RuntimeError):  # the loop was closed a moment ago
            life_of(self._runner).thread.post(self._end_call, number)

    def _end_call(self, number: int) -> None:
        task = self._calls.get(number)
        if task is None:
            self._ended_calls.add(number)
        else:
            task.cancel()

    def _begin_call(self, number: int) -> None:
        if number in self._ended_calls:
            raise asyncio.CancelledError
        self._calls[number] = asyncio.current_task()

    def stop(self, timeout_s: float) -> None:
        """End what runs, close what the loop has, and let the engine go."""
        self._out.close()
        self._news.close()
        self._runner.destroy(timeout_s)
        destroy = getattr(self._engine, "destroy", None)
        if callable(destroy):
            destroy()


def _log_blocked(found: Blocked | Late) -> None:
    """Say here, where the stack is, which function, or functions, kept the loop from going on."""
    event = "loop_is_late" if isinstance(found, Late) else "loop_blocked"
    log(get_logger(), "warning", event, found.fields())


async def _limited(
    begin: Callable[[], None],
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    limit_s: float | None,
) -> Any:
    begin()
    return await within(limit_s, async_fn, args)
