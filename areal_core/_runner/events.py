"""Every line the runner logs. A logger that raises costs the line, never the runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from areal_core._log import describe, get_logger, log
from areal_core._runner.job import Job

_NAMED_AT_MOST = 10  # a log line stays a line, whatever happened to ten thousand tasks


class Events:
    """The log of one life of a runner. *logger* is a structlog or a standard logger, None for ours."""

    def __init__(self, logger: Any = None) -> None:
        self._logger = get_logger(logger)
        self.silent = False
        """Set at interpreter exit, when nothing is said any more."""
        self.ending = False
        """Set when the runner ends: what that cancels is counted in one line, not logged one by one."""

    def task_started(self, job: Job) -> None:
        self._log("debug", "task_started", task=job.label)

    def task_completed(self, job: Job) -> None:
        self._log("debug", "task_completed", task=job.label, seconds=_seconds(job))

    def task_ended_badly(self, job: Job) -> None:
        """Log one canonical line for a task without a value; with the traceback when it failed."""
        status = job.status
        if self.ending and status == "cancelled":
            return
        fields = {"task": job.label, "seconds": _seconds(job), "error": describe(job.error)}
        if status == "failed":
            self._log("error", "task_failed", **fields, exc_info=job.error)
        else:
            self._log("warning", f"task_{status}", **fields)

    def contained(self, what: str) -> None:
        self._log("warning", "task_tried_to_stop_the_loop", what=what)

    def fell_back_to_asyncio(self, error: BaseException) -> None:
        self._log("warning", "uvloop_not_used", error=describe(error), instead="asyncio")

    def results_discarded(self, count: int) -> None:
        self._log("warning", "uncollected_results_discarded", count=count, by="initialize")

    def runner_died(self, fault: BaseException) -> None:
        self._log("error", "runner_died", error=describe(fault), exc_info=fault)

    def tasks_cancelled(self, count: int) -> None:
        self._log("info", "tasks_cancelled_by_destroy", count=count)

    def tasks_abandoned(self, names: Sequence[str]) -> None:
        """Log which tasks did not end when they were told to."""
        self._log("warning", "tasks_abandoned", count=len(names), tasks=list(names[:_NAMED_AT_MOST]))

    def thread_left_behind(self, stack: str) -> None:
        self._log("error", "loop_thread_left_behind", reason="it did not stop in time", stack=f"\n{stack}")

    def step_failed(self, step: str, error: BaseException) -> None:
        self._log("error", "shutdown_step_failed", step=step, error=describe(error), exc_info=error)

    def step_timed_out(self, step: str) -> None:
        self._log("warning", "shutdown_step_timed_out", step=step)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        if self.silent:
            return
        log(self._logger, level, event, fields)


def _seconds(job: Job) -> float:
    return round((job.finish_time - job.create_time) / 1e9, 6)
