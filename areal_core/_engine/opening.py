"""Whether generation is open: what a weight update closes, and everybody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial

from areal_core._engine.events import Events
from areal_core._engine.waking import set_done

_SAY_SO_AFTER_S = 60.0


class Opening:
    """A gate that any thread may close and open, and tasks on any loop wait for. Waiting costs nothing."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._lock = threading.RLock()
        self._closed_at: float | None = None
        self._closed_s = 0.0  # altogether, of the times that are over
        self._wakes: dict[object, Callable[[], None]] = {}
        self._said_so = False
        self.closings = 0
        """How often it was closed."""

    @property
    def is_open(self) -> bool:
        """Whether generations may be sent."""
        return self._closed_at is None

    @property
    def closed_s(self) -> float:
        """For how many seconds it has been closed, altogether."""
        if self.is_open:  # the time is counted before that is said: no lock is needed to see it
            return self._closed_s
        with self._lock:
            return self._closed_s + (0.0 if self._closed_at is None else time.monotonic() - self._closed_at)

    def close(self) -> None:
        """Send no more generations. Nothing happens when it is closed."""
        with self._lock:
            if self._closed_at is None:
                self._closed_at = time.monotonic()
                self._said_so = False
                self.closings += 1

    def open(self) -> None:
        """Wake everybody who waits. Nothing happens when it is open."""
        with self._lock:
            if self._closed_at is None:
                return
            self._closed_s += time.monotonic() - self._closed_at
            self._closed_at = None
            wakes, self._wakes = self._wakes, {}
        for wake in wakes.values():
            wake()

    def when_open(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called on the running loop, once, as soon as it is open; return what ends that."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(callback)

        def forget() -> None:
            with self._lock:
                self._wakes.pop(wake, None)

        with self._lock:
            if self._closed_at is not None:
                self._wakes[wake] = wake
                return forget
        wake()
        return forget

    async def wait(self) -> None:
        """Wait until it is open; after a minute, say so once."""
        while not self.is_open:
            opened = asyncio.get_running_loop().create_future()
            forget = self.when_open(partial(set_done, opened))
            try:
                done, _ = await asyncio.wait((opened,), timeout=_SAY_SO_AFTER_S)
                if not done:
                    self._say_so()
                    await opened
            finally:
                forget()

    def _say_so(self) -> None:
        with self._lock:
            if self._said_so or self._closed_at is None:
                return
            self._said_so = True
            closed_s, waiting = time.monotonic() - self._closed_at, len(self._wakes)
        self._events.waits_for_open_generation(closed_s, waiting)
