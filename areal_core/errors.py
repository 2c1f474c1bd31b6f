"""The errors of areal_core, one tree. There is a class only where a caller would catch it.

ArealError
├── RunnerStoppedError   (RuntimeError)  the runner was stopped by you, or never started
├── RunnerDiedError      (RuntimeError)  the runner was broken by something; the cause is chained
├── TaskQueueFullError   (RuntimeError)  as many tasks as ``max_queue_size`` are not yet collected
└── UnknownTaskError     (LookupError)   no such task: never accepted, or already delivered

Bad arguments are ValueError and TypeError, a passed deadline is TimeoutError, all three built in.
"""

from __future__ import annotations

__all__ = [
    "ArealError",
    "RunnerDiedError",
    "RunnerStoppedError",
    "TaskQueueFullError",
    "UnknownTaskError",
]


class ArealError(Exception):
    """Base of every error this library defines."""


class RunnerStoppedError(ArealError, RuntimeError):
    """The runner does not run: it was destroyed, never initialized, or belongs to another process."""


class RunnerDiedError(ArealError, RuntimeError):
    """The runner ended by a fault of its own, which is the ``__cause__``; ``initialize()`` restarts it."""


class TaskQueueFullError(ArealError, RuntimeError):
    """``submit`` was refused: the runner already answers for ``max_queue_size`` uncollected tasks."""


class UnknownTaskError(ArealError, LookupError):
    """No task with this id is outstanding: it was never accepted, or its result was delivered."""
