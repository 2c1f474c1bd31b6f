"""Call what a user registered, sync or async, within a time limit.

An awaitable is cancelled at its limit and abandoned when it refuses. A blocked thread can be neither
interrupted nor left: its callback is named in a log line, written while it blocks by another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import time
import types
from collections.abc import Callable, Iterator

from areal_core._log import get_logger
from areal_core._process import pin

_CANCEL_GRACE_S = 0.5  # to end after a cancellation; closing a connection takes a few milliseconds

_log = get_logger()


class Callback:
    """A function without arguments, sync or returning an awaitable, and the seconds it may take."""

    def __init__(self, function: Callable[[], object], timeout_s: float) -> None:
        self._function = function
        self._timeout_s = timeout_s
        self.name = _name(function)
        """What log lines call it."""

    def calls(self, function: object) -> bool:
        """Return whether it was made from this very *function*, or method of the very same object."""
        return _identity(self._function) == _identity(function)

    async def call(self, deadline: float) -> None:
        """Call, and see an awaitable through, at the latest until the monotonic time *deadline*.

        Raises what the function and its awaitable raise. That it ran out of time is only logged.
        """
        others = asyncio.all_tasks()
        # A coroutine function does nothing yet: not worth a thread.
        watched = not inspect.iscoroutinefunction(self._function)
        with _named_if_it_blocks(self.name, self._timeout_s) if watched else contextlib.nullcontext():
            result = self._function()
        if inspect.isawaitable(result):
            await self._finish(asyncio.ensure_future(result), others, deadline)

    async def _finish(
        self, task: asyncio.Future[object], others: set[asyncio.Task[object]], deadline: float
    ) -> None:
        limit_s = min(self._timeout_s, _left(deadline))
        # A coroutine that only awaits is given up well before: then it is the thread that is blocked.
        with _named_if_it_blocks(self.name, limit_s + 2 * _CANCEL_GRACE_S):
            # Not asyncio.wait_for: that waits on for a task that swallows its cancellation.
            await asyncio.wait({task}, timeout=limit_s)
            if task.done():
                task.result()
                return
            task.cancel()
            await asyncio.wait({task}, timeout=min(_CANCEL_GRACE_S, _left(deadline)))
        ended = task.done()
        error = task.exception() if ended and not task.cancelled() else None
        seconds = round(limit_s, 3)
        _log.error("loop_cleanup_timed_out", callback=self.name, seconds=seconds, ended=ended, exc_info=error)
        _abandon(asyncio.all_tasks() - (others - {task}))


def _left(deadline: float) -> float:
    """Return the seconds until *deadline*; with 0.0 a task is still given a turn or two of the loop."""
    return max(0.0, deadline - time.monotonic())


def _abandon(tasks: set[asyncio.Task[object]]) -> None:
    """Give up what is left of a callback, itself or its children, so that none is heard of again."""
    for task in tasks:
        asyncio.tasks._unregister_task(task)  # or who waits for all tasks would wait for it
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        coroutine = task.get_coro()
        try:
            coroutine.close()
        except BaseException:
            pin(coroutine)  # it refuses to be closed: collected, at exit too, it would complain or never end


@contextlib.contextmanager
def _named_if_it_blocks(name: str, seconds: float) -> Iterator[None]:
    """Have another thread log *name* if the block is still running after *seconds*."""
    fields = {"callback": name, "seconds": round(seconds, 3)}
    seconds = min(seconds, threading.TIMEOUT_MAX)
    timer = threading.Timer(seconds, _log.warning, ["loop_cleanup_blocks"], fields)
    try:
        timer.start()
    except RuntimeError:  # out of threads, or the interpreter is ending: unwatched, then
        yield
        return
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _identity(function: object) -> tuple[object, ...]:
    """Return what tells *function* from others: a bound method is a new object at each access."""
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    if isinstance(function, types.BuiltinMethodType | types.MethodWrapperType):
        return id(function.__self__), function.__name__
    return (id(function),)


def _name(function: object) -> str:
    """Return module and name of *function*, never its repr: a partial's shows the arguments."""
    if isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    return f"{module}.{named.__qualname__}" if module else named.__qualname__
