"""Whether generation is open: what a weight update closes, and everybody waits for; who is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial

from areal_core._engine.events import Events
from areal_core._engine.policy import Moment
from areal_core._engine.subscribers import Subscribers
from areal_core._engine.waking import set_done

_SAY_SO_AFTER_S = 60.0


class Opening:
    """A gate that any thread may close and open, and tasks on any loop wait for. Waiting costs nothing.

    It is closed while it is paused, which the servers are then too, and while it *is_held*, of which they
    know nothing. *on_change* is called when either may have changed, in the thread that did it.
    """

    def __init__(
        self,
        events: Events,
        on_change: Callable[[], None] = lambda: None,
        is_held: Callable[[], bool] = lambda: False,
    ) -> None:
        self._events = events
        self._on_change = on_change
        self._asks_whether_held = is_held
        self._lock = threading.RLock()
        self.is_paused = False
        """Whether it is paused."""
        self.is_held = False
        """Whether it is held."""
        self._closed_at: float | None = None
        self._closed_s = 0.0  # altogether, of the times that are over
        self._wakes: dict[object, Callable[[], None]] = {}
        self._said_so = False
        self.closings = 0
        """How often it was paused."""
        self.called_at: Moment | None = None
        """When, in this pause, servers were last called for what may be weights. Until a version is set they
        may have got some of them."""

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
        """Pause: send no more generations. Nothing happens when it is paused."""
        self._set(True)

    def open(self) -> None:
        """End the pause: wake everybody who waits, unless it is held. Nothing happens without a pause."""
        self._set(False)

    def look(self) -> None:
        """See whether it is held."""
        self._set(None)

    def _set(self, is_paused: bool | None) -> None:
        with self._lock:
            if is_paused is not None:
                self.closings += is_paused and not self.is_paused
                self.is_paused = is_paused
                self.called_at = self.called_at if is_paused else None
            self.is_held = self._asks_whether_held()  # with the lock: who looks last sees what was said last
            wakes = self._settle()
        for wake in wakes:
            wake()
        self._on_change()

    def _settle(self) -> list[Callable[[], None]]:
        """Begin or end to count the time; return who is to be woken. With the lock."""
        is_open = not (self.is_paused or self.is_held)
        if is_open == self.is_open:
            return []
        if self._closed_at is None:
            self._closed_at = time.monotonic()
            self._said_so = False
            return []
        self._closed_s += time.monotonic() - self._closed_at
        self._closed_at = None
        wakes, self._wakes = self._wakes, {}
        return list(wakes.values())

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
            opens = "continue_generation()" if self.is_paused else "hold_generation(False)"
        self._events.waits_for_open_generation(closed_s, waiting, opens)


class OpeningNews:
    """Tells subscribers whether generation is open, over all lives of an engine.

    *is_open* says so, or None where nothing can be said; *raised* is called with what a subscriber raises.
    """

    def __init__(self, is_open: Callable[[], bool | None], raised: Callable[[Exception], None]) -> None:
        self._is_open = is_open
        self._lock = threading.RLock()  # held while they are told: what they hear last is how it is
        self._subscribers: Subscribers[bool] = Subscribers("whether generation is open", raised)
        self._told = True

    def renew(self) -> None:
        """Begin anew in a forked process, where nothing is closed yet."""
        self._lock, self._told = threading.RLock(), True
        self._subscribers.renew()

    def see(self) -> None:
        """Tell of a change, if there was one since the last time; in this thread."""
        with self._lock:
            is_open = self._is_open()
            if is_open is not None and is_open != self._told:
                self._told = is_open
                self._subscribers.tell(is_open, self._subscribers.now())

    def subscribe(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Have *callback* told from now on, and at once when it is closed; return what ends that."""
        with self._lock:
            end = self._subscribers.add(callback)
            if not self._told:
                self._subscribers.tell(False, [callback])
        return end
