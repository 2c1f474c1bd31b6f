"""The errors of areal_core, one tree. There is a class only where a caller would catch it.

ArealError
├── RunnerStoppedError   (RuntimeError)  the runner was stopped by you, or never started
├── RunnerDiedError      (RuntimeError)  the runner was broken by something; the cause is chained
├── TaskQueueFullError   (RuntimeError)  as many tasks as ``max_queue_size`` are not yet collected
├── UnknownTaskError     (LookupError)   no such task: never accepted, or already delivered
├── AdmissionStalledError (RuntimeError)  nothing may start before the policy version rises, and it does not
├── JournalError         (RuntimeError)  a journal cannot be used, or not be resumed there, or not be written
├── FailureBudgetError   (RuntimeError)  too many rollouts in a row brought nothing
├── WorkerDiedError      (RuntimeError)  a worker process of `offloaded` ended in the middle of a call
├── WorkerLostError      (RuntimeError)  a rollout was lost with the worker that played it, too often
├── RemoteError          (RuntimeError)  what another process raised, and could not be brought over as it was
└── InferenceError       (RuntimeError)  inference servers, or the engine that asks them
    ├── ServerStatusError                a server answered that it would not, or could not
    ├── ServerUnreachableError           a server could not be reached, or hung up; or none is left
    ├── MalformedReplyError              a server's answer is not what its protocol says
    ├── GenerationTimeoutError (TimeoutError)  a generation took longer than ``request_timeout``
    ├── EngineStoppedError               the engine was destroyed, or never initialized
    └── ControlError                     a control call failed at some servers; their answers are in it
        └── WeightUpdateError            the same, of a weight update: the version did not rise

Bad arguments are ValueError and TypeError, a passed deadline is TimeoutError, all three built in.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping

__all__ = [
    "AdmissionStalledError",
    "ArealError",
    "ControlError",
    "DataExhaustedError",
    "EngineStoppedError",
    "FailureBudgetError",
    "GenerationTimeoutError",
    "InferenceError",
    "JournalError",
    "MalformedReplyError",
    "RemoteError",
    "RunnerDiedError",
    "RunnerStoppedError",
    "ServerStatusError",
    "ServerUnreachableError",
    "TaskQueueFullError",
    "UnknownTaskError",
    "WeightUpdateError",
    "WorkerDiedError",
    "WorkerLostError",
]

_SHOWN_AT_MOST = 5  # kinds of failures in a message
_SHORTAGES = (_errno.EMFILE, _errno.ENFILE, _errno.ENOMEM, _errno.EADDRNOTAVAIL)


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


class DataExhaustedError(ArealError, ValueError):
    """The dataloader of ``prepare_batch`` gave items, and gives none when it is iterated again.

    It is told when nothing of it can come any more, and how the rollouts of the executor have ended.
    """


class AdmissionStalledError(ArealError, RuntimeError):
    """A caller waits for rollouts that may not start before the policy version rises, and it does not."""

    def __init__(self, *, limit: int, version: int, waiting: int, consumed: int) -> None:
        self.limit = limit
        """How many trajectories may be under way at one version: (max_staleness + 1) x batch."""
        self.version = version
        """The policy version."""
        self.waiting = waiting
        """How many have ended and are not delivered."""
        self.consumed = consumed
        """How many were delivered at this version."""
        super().__init__(
            f"nothing more may start at version {version}: of the {limit} trajectories that the bound on "
            f"staleness allows, {consumed} were delivered and {waiting} wait to be, and who waits needs "
            "more; raise the version (by engine.set_version, or on_version_changed() for another provider), "
            "wait for fewer, or allow more staleness"
        )


class FailureBudgetError(ArealError, RuntimeError):
    """Too many training rollouts in a row brought nothing; the first error among them is chained."""

    def __init__(self, message: str, kinds: Mapping[str, int]) -> None:
        self.kinds = dict(kinds)
        """How many of them ended in which way, the commonest first: by type and place of the error."""
        super().__init__(message, self.kinds)

    def __str__(self) -> str:
        kinds = [f"{count} x {kind}" for kind, count in list(self.kinds.items())[:_SHOWN_AT_MOST]]
        return "; ".join([str(self.args[0]), *kinds])


class WorkerDiedError(ArealError, RuntimeError):
    """A worker process ended in the middle of a call; other calls and the next ones go on."""


class WorkerLostError(ArealError, RuntimeError):
    """A rollout was lost with the worker that played it, and again with those that played it after that."""


class RemoteError(ArealError, RuntimeError):
    """What a rollout raised in another process, where it cannot be pickled: its type and its text."""


class InferenceError(ArealError, RuntimeError):
    """Base of what goes wrong between the engine and its servers."""


class ServerStatusError(InferenceError):
    """A server answered with an error status."""

    def __init__(self, server: str, call: str, status: int, words: str, retry_after_s: float | None = None):
        self.server = server
        """Its address."""
        self.call = call
        """Method and path."""
        self.status = status
        self.words = words
        """What the server said, shortened."""
        self.retry_after_s = retry_after_s
        """Seconds it asks to be left alone; None: it does not say."""
        super().__init__(server, call, status, words, retry_after_s)

    def __str__(self) -> str:
        return f"{self.server} answered {self.call} with {self.status}: {self.words or 'without a word'}"


class ServerUnreachableError(InferenceError):
    """A server could not be reached, or hung up, or was silent for too long; or no server is left."""

    def __init__(
        self,
        message: str,
        *,
        server: str | None = None,
        sent: bool = False,
        errno: int | None = None,
        unresolved: bool = False,
    ):
        self.server = server
        """Its address; None when there is no server to ask."""
        self.sent = sent
        """Whether the request may have reached the server."""
        self.errno = errno
        """The system's number for why there was no connection, as of an OSError; None: it gave none."""
        self.unresolved = unresolved
        """Whether its name could not be resolved."""
        super().__init__(message)

    @property
    def is_shortage(self) -> bool:
        """Whether something was short here, such as file descriptors, which says nothing of the server.

        So it does not where its name could not be resolved, which may be so for a moment only.
        """
        return self.unresolved or self.errno in _SHORTAGES


class MalformedReplyError(InferenceError):
    """A server's answer is not what its protocol says; the message names the server and the field."""

    def __init__(self, server: str, call: str, problem: str):
        self.server = server
        self.call = call
        self.problem = problem
        super().__init__(server, call, problem)

    def __str__(self) -> str:
        return f"the reply of {self.server} to {self.call} is malformed: {self.problem}"


class GenerationTimeoutError(InferenceError, TimeoutError):
    """A generation took longer than ``request_timeout``, over all its attempts."""


class EngineStoppedError(InferenceError):
    """The engine does not work: it was destroyed, never initialized, or belongs to another process."""


class ControlError(InferenceError):
    """A control call failed at some of the servers."""

    def __init__(self, message: str, answers: Mapping[str, BaseException | None]):
        self.answers = dict(answers)
        """What became of the call at each server, by address: None where it succeeded."""
        super().__init__(message, self.answers)

    def __str__(self) -> str:
        failed = [f"{server}: {error}" for server, error in self.answers.items() if error is not None]
        return "; ".join([str(self.args[0]), *failed])


class WeightUpdateError(ControlError):
    """A weight update failed at some of the servers; the policy version did not rise."""


class JournalError(ArealError, RuntimeError):
    """A journal cannot be used, or resumed from there, or written."""
