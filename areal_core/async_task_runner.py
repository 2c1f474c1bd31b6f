"""Run coroutines from synchronous code, on an event loop in a thread of its own.

::

    with AsyncTaskRunner[str](max_queue_size=1024) as runner:
        for url in urls:
            runner.submit(fetch, url)
        pages = runner.wait(count=len(urls))

The trainer's thread submits and waits; the loop thread runs the tasks. Every accepted task ends in
exactly one outcome, and at every moment ``submitted == pending + running + finished + collected +
discarded``. A timeout, a Ctrl-C, ``pause`` or ``destroy`` discards nothing. See the package
``_runner`` for how it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, Literal, TypeVar, overload

from areal_core import _process
from areal_core._runner import arguments, exit_hook
from areal_core._runner.arguments import FIRST_OWN_ID
from areal_core._runner.calls import Call
from areal_core._runner.gate import Gate
from areal_core._runner.job import Job
from areal_core._runner.life import Life, LifeSettings
from areal_core._runner.lifecycle import Lifecycle, raise_if_abroad, raise_on_loop_thread
from areal_core._runner.loop_thread import LoopFactory
from areal_core._runner.results import RunnerStats, Status, TimedResult
from areal_core._runner.shelf import Holding
from areal_core.errors import TaskQueueFullError

__all__ = ["AsyncTaskRunner", "RunnerStats", "Status", "TaskOptions", "TaskQueueFullError", "TimedResult"]

T = TypeVar("T")
R = TypeVar("R")


class AsyncTaskRunner(Lifecycle, Generic[T]):
    """Runs coroutines whose values are of type *T* on a background event loop.

    Use it as a context manager, or call ``initialize`` and ``destroy``, as often as you like.

    *max_queue_size* bounds the tasks it answers for: accepted and not yet collected. *task_timeout* is
    the deadline of each task in seconds from its start (None: none). A task told to end may clean up
    for *cancel_grace* seconds before its outcome is published without it. *loop_factory* makes the
    loop (None: uvloop where it is installed and works, else asyncio with one log line); the loop's
    default executor is the runner's own. *enable_tracing* logs a debug event at each start and end.
    *poll_wait_time* and *poll_sleep_time* have no effect: nothing here polls.

    Raises TypeError and ValueError for arguments that make no sense.
    """

    def __init__(
        self,
        max_queue_size: int,
        poll_wait_time: float = 0.05,
        poll_sleep_time: float = 0.5,
        enable_tracing: bool = False,
        *,
        task_timeout: float | None = None,
        cancel_grace: float = 5.0,
        loop_factory: LoopFactory | None = None,
    ) -> None:
        if loop_factory is not None and not callable(loop_factory):
            raise TypeError(f"loop_factory={loop_factory!r} cannot be called; pass a function, or None")
        super().__init__(
            LifeSettings(
                max_queue_size=arguments.check_count("max_queue_size", max_queue_size),
                cancel_grace_s=arguments.check_grace(cancel_grace),
                tracing=bool(enable_tracing),
                loop_factory=loop_factory,
            )
        )
        self._task_timeout_s = arguments.check_seconds("task_timeout", task_timeout, positive=True)
        self._own_ids = itertools.count(arguments.FIRST_OWN_ID)

    # -- tasks -------------------------------------------------------------------------------------

    def submit(
        self,
        async_fn: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        task_id: int | None = None,
        **kwargs: Any,
    ) -> int:
        """Have ``async_fn(*args, **kwargs)`` run on the loop and return the task's id. Never blocks.

        Any thread may call this, the loop's too. Tasks start in the order of submit, each in its own
        copy of the caller's context variables. *task_id* is an int in 0..2**48-1; None makes one up.

        Raises TaskQueueFullError when ``max_queue_size`` tasks are uncollected, ValueError for an id
        in use, TypeError for what is no function, RunnerStoppedError and RunnerDiedError.
        """
        return self._submit(async_fn, args, kwargs, task_id, self._task_timeout_s)

    def with_options(
        self,
        *,
        task_timeout: float | arguments.Unset | None = arguments.Unset.UNSET,
        task_id: int | None = None,
    ) -> TaskOptions[T]:
        """Give one submit options of its own: ``with_options(task_timeout=30.0).submit(fn, *args)``.

        *task_timeout* is a deadline in seconds from the task's start, None lifts the runner's default.
        Raises ValueError when it is NaN or not above 0.
        """
        if isinstance(task_timeout, arguments.Unset):
            timeout_s = self._task_timeout_s
        else:
            timeout_s = arguments.check_seconds("task_timeout", task_timeout, positive=True)
        return TaskOptions(self, task_id, timeout_s)

    def _submit(
        self,
        fn: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        task_id: int | None,
        timeout_s: float | None,
    ) -> int:
        life = self._life
        # Here what is right costs no call: of a burst each would be a fiftieth.
        if life is None or life.home is not _process.home():
            life = self._here()
        if not callable(fn):
            arguments.refuse_fn(fn)
        if task_id is None:
            task_id = next(self._own_ids)
        elif type(task_id) is not int or not 0 <= task_id < FIRST_OWN_ID:
            task_id = arguments.check_task_id(task_id)
        life.ledger.accept(Job(task_id, fn, args, kwargs, contextvars.copy_context(), timeout_s))
        return task_id

    def cancel(self, task_id: int) -> bool:
        """Decide that a task's outcome is ``cancelled``; return whether it is.

        True also when it was decided before; False for an id that is unknown, past its deadline, or
        finished otherwise. A running task may clean up for ``cancel_grace`` seconds.
        Raises RunnerStoppedError, RunnerDiedError, TypeError for what is no id.
        """
        return self._here().cancel(arguments.check_any_id(task_id))

    def pause(self) -> None:
        """Stop starting tasks. Those that run go on, and their results are delivered.

        Raises RunnerStoppedError, RunnerDiedError.
        """
        self._here().ledger.pause()

    def resume(self) -> None:
        """Start what is pending, at once. Raises RunnerStoppedError, RunnerDiedError."""
        self._here().ledger.resume()

    # -- results -----------------------------------------------------------------------------------

    @overload
    def wait(
        self, count: int, timeout: float | None = None, with_timing: Literal[False] = False
    ) -> list[T | None]: ...

    @overload
    def wait(
        self, count: int, timeout: float | None = None, *, with_timing: Literal[True]
    ) -> list[TimedResult[T]]: ...

    @overload
    def wait(self, count: int, timeout: float | None, with_timing: Literal[True]) -> list[TimedResult[T]]: ...

    def wait(
        self, count: int, timeout: float | None = None, with_timing: bool = False
    ) -> list[T | None] | list[TimedResult[T]]:
        """Wait until *count* tasks have finished, and return their values in the order they finished.

        A task that failed, timed out or was cancelled gives None and is logged; with *with_timing* the
        list is of TimedResult objects, which tell. *timeout* is in seconds, None waits for ever, 0 polls.

        Raises TimeoutError, which consumes nothing; ValueError when *count* exceeds ``max_queue_size``;
        RunnerStoppedError and RunnerDiedError, RuntimeError on the loop thread.
        """
        most = self._settings.max_queue_size
        if arguments.check_count("count", count) > most:
            raise ValueError(
                f"count={count} exceeds max_queue_size={most}, so that many are never there; "
                "wait for fewer, or raise max_queue_size"
            )
        deadline = arguments.deadline_after(timeout)
        shelf = self._shelf("wait")
        holding = Holding()
        try:
            shelf.take(count, deadline, holding)
            if with_timing:
                return [job.timed_result() for job in holding.jobs]
            return [job.data for job in holding.jobs]
        except BaseException:
            shelf.returned.append(holding)  # in this frame: a second Ctrl-C cannot come before it
            shelf.settle()
            raise

    def wait_for_task(self, task_id: int, timeout: float | None = None) -> TimedResult[T]:
        """Wait for one task and return its outcome.

        The task is claimed at the call: ``wait`` and ``as_completed`` do not see it. A timeout or a Ctrl-C
        releases the claim, and the result keeps its place. *timeout* is in seconds, None waits for ever.

        Raises UnknownTaskError for an id never accepted or already delivered; ValueError when another
        claimed it; TypeError for what is no id; TimeoutError; RunnerStoppedError and RunnerDiedError,
        RuntimeError on the loop thread.
        """
        deadline = arguments.deadline_after(timeout)
        shelf = self._shelf("wait_for_task")
        holding = Holding()
        try:
            shelf.claim(arguments.check_any_id(task_id), holding)
            shelf.take_claimed(task_id, deadline, holding)
            return holding.jobs[0].timed_result()
        except BaseException:
            shelf.returned.append(holding)
            shelf.settle()
            raise

    def as_completed(self, timeout: float | None = None) -> Iterator[TimedResult[T]]:
        """Iterate over outcomes as tasks finish, until no unclaimed task is outstanding.

        Tasks submitted meanwhile are included. A result is collected when it is yielded; leaving the loop
        early leaves the rest. *timeout* is in seconds from this call, for the whole iteration.

        Raises TimeoutError; RunnerStoppedError and RunnerDiedError, RuntimeError on the loop thread.
        """
        deadline = arguments.deadline_after(timeout)
        life = self._here()
        raise_on_loop_thread(life, "as_completed")
        return _iterate(life, deadline)

    # -- calls -------------------------------------------------------------------------------------

    def run(self, async_fn: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any) -> R:
        """Run one coroutine on the loop, and return its value or raise its exception.

        It counts against nothing, has no deadline, and works while paused. A Ctrl-C cancels it. What it left
        to the loop, as by ``call_soon``, may not have been done when this returns.
        Raises RunnerStoppedError when the runner ends first; RuntimeError on the loop thread, where
        ``arun`` does the same without waiting for itself.
        """
        if not callable(async_fn):
            arguments.refuse_fn(async_fn)
        life = self._here()
        raise_on_loop_thread(life, "run")
        gate = Gate()
        call = Call(async_fn, args, kwargs, gate.open)
        try:
            life.call(call)
            gate.wait()
            exit_hook.stay_if_over()
        except BaseException:
            life.cancel_call(call)
            raise
        result: R = call.result()
        return result

    async def arun(self, async_fn: Callable[..., Awaitable[R]], /, *args: Any, **kwargs: Any) -> R:
        """Do what ``run`` does, from a coroutine on any loop; cancelling this cancels the coroutine."""
        if not callable(async_fn):
            arguments.refuse_fn(async_fn)
        life = self._here()
        if life.thread.is_current():
            return await async_fn(*args, **kwargs)
        loop = asyncio.get_running_loop()
        arrival: asyncio.Future[None] = loop.create_future()

        def arrived() -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits
                loop.call_soon_threadsafe(_set_done, arrival)

        call = Call(async_fn, args, kwargs, arrived)
        try:
            life.call(call)
            await arrival
        except BaseException:
            life.cancel_call(call)
            raise
        result: R = call.result()
        return result


class TaskOptions(Generic[T]):
    """Submits with options of its own, so that a task's keyword arguments may have any name."""

    __slots__ = ("_runner", "_task_id", "_timeout_s")

    def __init__(self, runner: AsyncTaskRunner[T], task_id: int | None, timeout_s: float | None) -> None:
        self._runner = runner
        self._task_id = task_id
        self._timeout_s = timeout_s

    def submit(self, async_fn: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> int:
        """Do what the runner's ``submit`` does, with these options."""
        return self._runner._submit(async_fn, args, kwargs, self._task_id, self._timeout_s)


def _set_done(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)


def _iterate(life: Life, deadline: float | None) -> Iterator[TimedResult[Any]]:
    shelf = life.ledger.shelf
    while True:
        raise_if_abroad(life)  # it may have been made in another process
        raise_on_loop_thread(life, "as_completed")  # or on another thread
        holding = Holding()
        try:
            if not shelf.take(1, deadline, holding, or_idle=True):
                return
            result = holding.jobs[0].timed_result()
        except BaseException:
            shelf.returned.append(holding)
            shelf.settle()
            raise
        yield result
