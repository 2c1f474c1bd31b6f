"""What ends one generation from outside: its deadline, or the end of the engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from areal_core._engine.opening import Opening
from areal_core.errors import EngineStoppedError, GenerationTimeoutError


class Limits:
    """A context that ends its body after *timeout_s* seconds in which generation was open.

    Raises GenerationTimeoutError, with what *describe* says, and EngineStoppedError after `stop`.
    """

    def __init__(self, timeout_s: float, opening: Opening, describe: Callable[[], str]) -> None:
        self._timeout_s = timeout_s
        self._opening = opening
        self._describe = describe
        self._loop = asyncio.get_running_loop()
        self._clock = asyncio.timeout(None)
        self._stopped: str | None = None
        self._over = True  # the body has not begun, or has ended, or is being ended
        self._forget: Callable[[], None] = _nothing

    async def __aenter__(self) -> None:
        if self._stopped is not None:
            raise self._error()
        self._began = self._loop.time()
        self._closed_before_s = self._opening.closed_s
        self._timer = self._loop.call_later(self._timeout_s, self._see)
        await self._clock.__aenter__()
        self._over = False

    async def __aexit__(self, *raised: Any) -> None:
        self._over = True
        self._timer.cancel()
        self._forget()
        try:
            await self._clock.__aexit__(*raised)
        except TimeoutError:
            raise self._error() from None
        finally:
            self._describe = str  # which knows this in turn: the two would wait for the garbage collector

    def left_s(self) -> float:
        """Return how many seconds are left; pauses are not counted."""
        passed_s = self._loop.time() - self._began - (self._opening.closed_s - self._closed_before_s)
        return self._timeout_s - passed_s

    def stop(self, why: str) -> None:
        """End the body with EngineStoppedError; any thread may."""
        self._stopped = why
        with contextlib.suppress(RuntimeError):  # its loop is closed, and it is over
            self._loop.call_soon_threadsafe(self._end)

    def _see(self) -> None:
        if self._over:
            return
        left_s = self.left_s()
        if not self._opening.is_open:
            self._forget = self._opening.when_open(self._see)
        elif left_s > 0:
            self._timer = self._loop.call_later(left_s, self._see)
        else:
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._clock.reschedule(self._loop.time())

    def _error(self) -> Exception:
        if self._stopped is not None:
            return EngineStoppedError(self._stopped)
        return GenerationTimeoutError(
            f"no complete reply within request_timeout={self._timeout_s:g} s: {self._describe()}"
        )


def _nothing() -> None:
    pass
