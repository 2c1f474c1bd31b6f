"""One accepted call, from submit to its outcome."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

from areal_core._runner.results import Status, TimedResult

NO_CONTEXT = contextvars.Context()


class WithKeywords(partial[Any]):
    """A function and its keyword arguments, until it is called."""


class Job:
    """One accepted call, until its outcome is delivered.

    Its sink's lock guards *decision*; all else belongs to the loop thread until the outcome is
    published, and to whoever collects it afterwards.
    """

    __slots__ = (
        "args",
        "context",
        "create_time",
        "data",
        "decision",
        "error",
        "finish_time",
        "fn",
        "task",
        "task_id",
        "timeout",
        "timer",
    )

    doing = ""
    """What it did at its deadline, for the error that says so."""

    noun = "task"
    """What errors call it."""

    def __init__(
        self,
        task_id: int,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: contextvars.Context,
        timeout: float | None,
    ) -> None:
        self.task_id = task_id
        self.fn = WithKeywords(fn, **kwargs) if kwargs else fn
        self.args = args
        self.context = context
        self.timeout = timeout
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.create_time = 0
        self.finish_time = 0
        self.data: Any = None
        self.error: BaseException | None = None
        # What was decided from outside, before the coroutine could: it stands, whatever that then does.
        self.decision: Status | None = None

    @property
    def is_open(self) -> bool:
        """Whether its outcome can still be decided: not once its coroutine has ended, published or not."""
        return self.decision is None and not self.finish_time

    def end(self, now: int) -> None:
        """Let it be over at *now* (ns): what its coroutine does from here on is not its outcome."""
        self.finish_time = now
        self.create_time = self.create_time or now

    @property
    def status(self) -> Status:
        if self.decision is not None:
            return self.decision
        if self.error is None:
            return "completed"
        return "cancelled" if issubclass(type(self.error), asyncio.CancelledError) else "failed"

    @property
    def label(self) -> str:
        """Name the task for a log line: its id and its function."""
        return f"{self.task_id} {self.fn_name}"

    @property
    def fn_name(self) -> str:
        fn: Any = self.fn
        while issubclass(type(fn), partial):  # not isinstance: its __class__ may raise
            fn = fn.func
        try:
            name = fn.__qualname__
        except BaseException:  # none, or a proxy that fails in its own way
            name = None
        return name if isinstance(name, str) else type(fn).__qualname__

    def verdict(self, decision: Status) -> BaseException:
        """Return the error of an outcome by *decision*; what the coroutine raised is its context."""
        raised = self.error
        verdict: BaseException
        if decision == "timed_out":
            exceeded = f"exceeded its deadline of {self.timeout} s{self.doing}"
            verdict = TimeoutError(f"{self.noun} {self.task_id} {exceeded}")
        elif raised is not None and issubclass(type(raised), asyncio.CancelledError):
            return raised
        else:
            verdict = asyncio.CancelledError(f"{self.noun} {self.task_id} was cancelled")
        verdict.__context__ = raised
        return verdict

    def timed_result(self) -> TimedResult[Any]:
        return TimedResult(
            self.task_id, self.data, self.create_time, self.finish_time, self.status, self.error
        )
