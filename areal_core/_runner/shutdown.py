"""End everything on a loop, then the loop, within a deadline, whatever user code does."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import gc
import itertools
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from areal_core._drive import drive
from areal_core._process import pin
from areal_core._runner.events import Events
from areal_core.loop_cleanup import run_loop_cleanup

_ROUNDS = 4
_SHORTEST_ROUND_S = 0.02  # a task told to end needs a few turns to do so, also where no grace is given


class Closing:
    """The closing of one loop, on its thread.

    What goes on there is kept until the loop is closed and it can take no more steps, and silenced then: a
    task that nobody refers to might be collected before, and would complain.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, events: Events) -> None:
        self._loop = loop
        self._events = events
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refused: list[Any] = []  # async generators that the loop could not close

    def cancel_tasks(self, patience_s: float) -> None:
        """Cancel every task, and those that come of it, and wait for them for *patience_s* seconds."""
        self._drive("cancel tasks", lambda: drive(self._loop, self._cancel_in_rounds(patience_s)))

    def close(self, executor: ThreadPoolExecutor, deadline: float, grace_s: float) -> None:
        """Run loop cleanup, shut down async generators and *executor*, and close the loop, by *deadline*.

        Async generators have *grace_s* seconds to clean up, like tasks.
        """

        def share(part: float, most_s: float) -> float:
            return max(_SHORTEST_ROUND_S, min(most_s, part * (deadline - time.monotonic())))

        loop = self._loop
        self._drive("loop cleanup", lambda: run_loop_cleanup(loop, share(0.5, 10.0)))
        closing = self._close_generators(share(0.5, grace_s))
        if not self._drive("async generators", lambda: drive(loop, closing)):
            self._events.step_timed_out("async generators")
        until = time.monotonic() + share(0.8, math.inf)
        if not self._attempt("default executor", lambda: shut_down_executor(executor, until)):
            self._events.step_timed_out("default executor")
        self._attempt("loop close", loop.close)
        self._silence_all()

    async def _cancel_in_rounds(self, patience_s: float) -> None:
        for attempt in range(_ROUNDS):
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            if not tasks:
                return
            insist = attempt == _ROUNDS - 1
            for task in tasks:
                # One that is cleaning up already is told a second time only at the very end.
                if insist or (task not in self._tasks and not _is_cancelling(task)):
                    with contextlib.suppress(BaseException):  # a task class may refuse in its own way
                        task.cancel()
            self._tasks |= tasks
            share_s = 0.0 if insist else patience_s / (_ROUNDS - 1)
            await asyncio.wait(tasks, timeout=max(_SHORTEST_ROUND_S, share_s))

    async def _close_generators(self, timeout_s: float) -> bool:
        """Close the async generators for *timeout_s* seconds at most; return whether that ended."""
        self._note_refusals()
        self._loop.set_task_factory(None)  # one that raises would leave coroutines that nobody awaits
        task = asyncio.ensure_future(self._loop.shutdown_asyncgens())
        self._tasks.add(task)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            task.cancel()
            # What it waits for may end yet, and would complain of a result that nobody fetched.
            await asyncio.wait({task}, timeout=_SHORTEST_ROUND_S)
            return False
        task.result()
        return True

    def _note_refusals(self) -> None:
        refused = self._refused  # by itself: the loop keeps what notes them, and would keep the tasks too
        complain = self._loop.get_exception_handler() or type(self._loop).default_exception_handler

        def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            refused.append(context.get("asyncgen"))
            complain(loop, context)

        self._loop.set_exception_handler(note)

    def _silence_all(self) -> None:
        for task in self._tasks:
            with contextlib.suppress(BaseException):  # a task class may refuse in its own way
                _silence(task)
        _keep_open_ones(self._refused)

    def _drive(self, step: str, action: Callable[[], Any]) -> Any:
        """Attempt what lets the loop run, and keep what tasks there are then."""
        try:
            return self._attempt(step, action)
        finally:
            self._tasks |= asyncio.all_tasks(self._loop)

    def _attempt(self, step: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except BaseException as error:  # the next step has to run all the same
            self._events.step_failed(step, error)
            return True


def _is_cancelling(task: asyncio.Task[Any]) -> bool:
    try:
        return bool(task.cancelling())
    except BaseException:  # a task class may not know, or refuse
        return False


def _silence(task: asyncio.Task[Any]) -> None:
    """Take care that *task*, left on a closed loop, says nothing when it is collected."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    parts = list(_awaiting(task.get_coro()))
    for step, awaited in reversed(list(itertools.pairwise(parts))):
        if isinstance(awaited, AsyncGenerator):  # which closing the whole does not reach before 3.13
            with contextlib.suppress(BaseException):
                step.throw(GeneratorExit())
    try:
        parts[0].close()
    except BaseException:
        pin(task)
    _keep_open_ones(parts)  # ours catches what the task's own raises, and ends all the same


def _awaiting(part: Any) -> Iterator[Any]:
    """Yield *part*, a coroutine, what it awaits, and so on, into async generators too."""
    while part is not None:
        yield part
        part = _awaited_by(part)


def _awaited_by(part: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(part, name):
            return getattr(part, name)
    # What anext() and aclose() give names its async generator nowhere. Other classes may refer to anything.
    known = gc.get_referents(part) if type(part).__module__ == "builtins" else []
    return next((other for other in known if isinstance(other, Coroutine | AsyncGenerator)), None)


def _keep_open_ones(parts: Iterable[Any]) -> None:
    """Pin those of *parts* that refused to be closed: collected, they would complain, or never end."""
    for part in parts:
        if any(getattr(part, name, None) is not None for name in ("cr_frame", "gi_frame", "ag_frame")):
            pin(part)


def shut_down_executor(executor: ThreadPoolExecutor, deadline: float) -> bool:
    """Stop *executor* and wait for its threads until *deadline*; return whether all ended.

    `loop.shutdown_default_executor` waits without a limit on 3.11, and so does the interpreter's exit,
    for daemon threads too: those that do not end are taken off its list. The two private names have been
    there since 3.9; without them the exit waits, as it does for any program.
    """
    executor.shutdown(wait=False, cancel_futures=True)
    threads = list(getattr(executor, "_threads", ()))
    for thread in threads:
        thread.join(min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
    stuck = [thread for thread in threads if thread.is_alive()]
    for thread in stuck:
        getattr(concurrent.futures.thread, "_threads_queues", {}).pop(thread, None)
    return not stuck
