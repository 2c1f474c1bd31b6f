"""The sink behind ``run`` and ``arun``: coroutines with one caller each, in no ledger."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from areal_core._runner.ending import Ending
from areal_core._runner.job import Job
from areal_core._runner.sink import Sink


class Call(Job):
    """One coroutine and the caller who waits for it. *arrived* is called once, from any thread."""

    __slots__ = ("arrived",)

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arrived: Callable[[], None],
    ) -> None:
        super().__init__(0, fn, args, kwargs, contextvars.copy_context(), None)
        self.arrived = arrived

    @property
    def label(self) -> str:
        """Name the call for a log line."""
        return f"call of {self.fn_name}"

    def result(self) -> Any:
        """Return the coroutine's value, or raise what it raised."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame by its traceback
        return self.data


class Calls(Sink):
    """The calls under way. Every one of them arrives, at its coroutine's end or at the runner's."""

    def __init__(self, tell_failure: Callable[[Job], None]) -> None:
        self._tell_failure = tell_failure
        self._lock = threading.RLock()
        self._open: set[Call] = set()
        self._ending: Ending | None = None
        self.ended: list[Call] = []
        """Those that the ending found under way, and their callers left."""

    def add(self, call: Call) -> None:
        """Answer for *call* from now on. Raises the ending."""
        with self._lock:
            if self._ending is not None:
                raise self._ending.error()
            self._open.add(call)

    def forget(self, call: Call) -> None:
        """Answer for *call* no longer: its caller has gone."""
        with self._lock:
            self._open.discard(call)

    def publish(self, jobs: Sequence[Job]) -> None:
        """Let the callers of *jobs* go on."""
        for job in jobs:
            if isinstance(job, Call):
                # Freed in the caller's thread, its weak references would call back there: into a Ctrl-C.
                job.task = None
                if not self._arrive(job) and job not in self.ended and job.status == "failed":
                    self._tell_failure(job)  # its caller has gone, and nobody else would hear of it

    def end(self, ending: Ending) -> None:
        """Let all callers go on, with the error of *ending* where their coroutines have not ended yet."""
        with self._lock:
            self._ending = self._ending or ending
            calls = list(self._open)
            self.ended += calls
        for call in calls:
            self._arrive(call, ending)

    def _arrive(self, call: Call, ending: Ending | None = None) -> bool:
        with self._lock:
            if call not in self._open:
                return False
            if ending is not None and not call.finish_time:  # else it is about to be published
                call.error = ending.error()  # first: after a Ctrl-C here it is done once more
                call.end(monotonic_ns())
            # While it is in there: a Ctrl-C between the two must not leave its caller waiting.
            call.arrived()
            self._open.discard(call)
            return True
