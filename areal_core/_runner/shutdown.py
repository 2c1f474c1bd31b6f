"""End everything on a loop, then the loop, within a deadline, whatever user code does."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from areal_core._drive import drive
from areal_core._process import pin
from areal_core._runner.events import Events
from areal_core.loop_cleanup import run_loop_cleanup

_ROUNDS = 4
_SHORTEST_ROUND_S = 0.02  # a task told to end needs a few turns to do so, also where no grace is given


def cancel_tasks(loop: asyncio.AbstractEventLoop, patience_s: float, events: Events) -> None:
    """Cancel every task on *loop*, and those that come of it, and wait for them for *patience_s* seconds."""
    _attempt("cancel tasks", events, lambda: drive(loop, _cancel_in_rounds(patience_s)))


async def _cancel_in_rounds(patience_s: float) -> None:
    told: set[asyncio.Task[Any]] = set()
    for attempt in range(_ROUNDS):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        insist = attempt == _ROUNDS - 1
        for task in tasks:
            # One that is cleaning up already is told a second time only at the very end.
            if insist or (task not in told and not task.cancelling()):
                with contextlib.suppress(BaseException):  # a task class may refuse in its own way
                    task.cancel()
        told |= tasks
        share_s = 0.0 if insist else patience_s / (_ROUNDS - 1)
        await asyncio.wait(tasks, timeout=max(_SHORTEST_ROUND_S, share_s))


def _silence_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Take care that the tasks left on a closed loop say nothing when they are collected."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutines = list(_awaiting(task.get_coro()))
        try:
            if coroutines:
                coroutines[0].close()
        except BaseException:
            pin(task)
        # Ours catches what the task's own raises, and ends all the same.
        for part in coroutines:
            if getattr(part, "cr_frame", None) is not None:
                pin(part)  # one that refuses to be closed complains when it is collected, or never ends


def _awaiting(coroutine: Any) -> Iterator[Any]:
    """Yield *coroutine*, the one that it awaits, and so on."""
    while coroutine is not None:
        yield coroutine
        coroutine = getattr(coroutine, "cr_await", None)


def close_loop(
    loop: asyncio.AbstractEventLoop,
    executor: ThreadPoolExecutor,
    deadline: float,
    grace_s: float,
    events: Events,
) -> None:
    """Run loop cleanup, shut down async generators and *executor*, and close *loop*, by *deadline*.

    Async generators have *grace_s* seconds to clean up, like tasks.
    """

    def share(part: float, most_s: float) -> float:
        return max(_SHORTEST_ROUND_S, min(most_s, part * (deadline - time.monotonic())))

    _attempt("loop cleanup", events, lambda: run_loop_cleanup(loop, share(0.5, 10.0)))
    closing = _within(loop.shutdown_asyncgens(), share(0.5, grace_s))
    if not _attempt("async generators", events, lambda: drive(loop, closing)):
        events.step_timed_out("async generators")
    until = time.monotonic() + share(0.8, math.inf)
    if not _attempt("default executor", events, lambda: shut_down_executor(executor, until)):
        events.step_timed_out("default executor")
    _attempt("loop close", events, loop.close)
    _silence_tasks(loop)  # now that none of them can take another step


async def _within(coroutine: Coroutine[Any, Any, None], timeout_s: float) -> bool:
    """Run *coroutine* for *timeout_s* seconds at most; return whether it ended."""
    task = asyncio.ensure_future(coroutine)
    done, _ = await asyncio.wait({task}, timeout=timeout_s)
    if not done:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.cancel()
        # What it waits for may end yet, and would complain of a result that nobody fetched.
        await asyncio.wait({task}, timeout=_SHORTEST_ROUND_S)
        return False
    task.result()
    return True


def shut_down_executor(executor: ThreadPoolExecutor, deadline: float) -> bool:
    """Stop *executor* and wait for its threads until *deadline*; return whether all ended.

    `loop.shutdown_default_executor` waits without a limit on 3.11, and so does the interpreter's exit,
    for daemon threads too: those that do not end are taken off its list. The two private names have been
    there since 3.9; without them the exit waits, as it does for any program.
    """
    executor.shutdown(wait=False, cancel_futures=True)
    threads = list(getattr(executor, "_threads", ()))
    for thread in threads:
        thread.join(min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
    stuck = [thread for thread in threads if thread.is_alive()]
    for thread in stuck:
        getattr(concurrent.futures.thread, "_threads_queues", {}).pop(thread, None)
    return not stuck


def _attempt(step: str, events: Events, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except BaseException as error:  # the next step has to run all the same
        events.step_failed(step, error)
        return True
