"""What callers are given: the outcome of a task, and a snapshot of the runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Status = Literal["completed", "failed", "timed_out", "cancelled"]


@dataclass(frozen=True, slots=True, eq=False)
class TimedResult(Generic[T]):
    """The outcome of one task."""

    task_id: int
    data: T | None
    """What the task returned; None unless it completed."""
    create_time: int
    """When the task started, in monotonic nanoseconds; *finish_time* if it never did."""
    finish_time: int
    """When its outcome was final, in monotonic nanoseconds."""
    status: Status
    error: BaseException | None
    """None when completed; the task's exception with its traceback when failed; a CancelledError when
    cancelled; a TimeoutError when timed out, with what the task raised meanwhile as its context."""

    @property
    def seconds(self) -> float:
        """How long it ran; 0 if it never started."""
        return (self.finish_time - self.create_time) / 1e9


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """A snapshot: ``submitted == pending + running + finished + collected + discarded``, always.

    The counters run over the life of the runner object, across ``destroy`` and ``initialize``.
    """

    submitted: int = 0
    """Tasks accepted."""
    pending: int = 0
    """Accepted, not started."""
    running: int = 0
    """Started, without an outcome."""
    finished: int = 0
    """With an outcome, not collected."""
    collected: int = 0
    """Handed to the caller."""
    discarded: int = 0
    """Finished, never collected, and dropped by a later ``initialize``."""
    abandoned: int = 0
    """Tasks of this life that have an outcome but refuse to end; counted in *finished* or *collected* too."""
    state: str = "new"
    """``new``, ``running``, ``paused``, ``stopped``, ``died`` or ``runner of another process``."""
