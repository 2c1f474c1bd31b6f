"""What ends one generation from outside: its deadline, or the end of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from areal_core._engine.deadlines import Deadlines
from areal_core._interruption import Interruption
from areal_core.errors import EngineStoppedError, GenerationTimeoutError


class Limits(Interruption):
    """A context that ends its body at its deadline, one of *deadlines*.

    Raises GenerationTimeoutError, with what *describe* says, and EngineStoppedError after `stop`.
    """

    def __init__(self, deadlines: Deadlines, describe: Callable[[], str]) -> None:
        super().__init__()
        self._deadlines = deadlines
        self._describe = describe
        self._stopped: str | None = None

    def __enter__(self) -> Self:
        if self._stopped is not None:
            raise self._error()
        self._began = self.loop.time()
        self._closed_before_s = self._deadlines.opening.closed_s
        super().__enter__()
        self._deadlines.begin(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._deadlines.drop(self)
        try:
            super().__exit__(*raised)
        finally:
            self._describe = str  # which knows this in turn: the two would wait for the garbage collector

    def left_s(self) -> float:
        """Return how many seconds are left; pauses are not counted."""
        paused_s = self._deadlines.opening.closed_s - self._closed_before_s
        return self._deadlines.timeout_s - (self.loop.time() - self._began - paused_s)

    def end(self) -> None:
        """End the body with GenerationTimeoutError."""
        self._interrupt()

    def stop(self, why: str) -> None:
        """End the body with EngineStoppedError; any thread may."""
        self._stopped = why
        self._interrupt_soon()

    def _error(self) -> Exception:
        if self._stopped is not None:
            return EngineStoppedError(self._stopped)
        timeout_s = self._deadlines.timeout_s
        return GenerationTimeoutError(
            f"no complete reply within request_timeout={timeout_s:g} s: {self._describe()}"
        )
