"""A clock whose time passes at once, and a thread in its time."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any


class VirtualTimer:
    """A call that is to come, unless it is cancelled."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Let it not come."""
        self._callback = None

    def ring(self) -> None:
        """Make the call."""
        if self._callback is not None:
            self._callback()


class VirtualClock:
    """A heap of calls that are to come; the time, in seconds, is that of the last one made."""

    def __init__(self) -> None:
        self._now = 0.0
        self._calls: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def time(self) -> float:
        """Return the time."""
        return self._now

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> None:
        """Have ``callback(*args)`` called at *when*, which has not passed, after all that is due by then."""
        self._order += 1
        heapq.heappush(self._calls, (when, self._order, callback, args))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        """Call *callback* in *delay_s* seconds."""
        timer = VirtualTimer(callback)
        self.at(self._now + delay_s, timer.ring)
        return timer

    def step(self) -> bool:
        """Make the next call, whenever that is; return whether there was one."""
        if not self._calls:
            return False
        self._now, _, callback, args = heapq.heappop(self._calls)
        callback(*args)
        return True

    def next_at(self) -> float:
        """Return when the next call is due; infinity: never."""
        return self._calls[0][0] if self._calls else math.inf

    def run_until(self, when: float) -> None:
        """Make all calls that are due by *when*, which has not passed."""
        while self._calls and self._calls[0][0] <= when:
            self.step()
        self._now = when


class VirtualThread:
    """Does one piece of work after the other, in the order in which they come. Each takes its time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._queue: deque[tuple[float, Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_busy = False
        self._spent_s = 0.0  # in the call that is being made
        self.busy_s = 0.0
        """How long it has worked, with all of what it is at."""

    def put(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Have *seconds* worked in its turn, and ``callback(*args)`` called at their end."""
        self._queue.append((seconds, callback, args))
        if not self._is_busy:
            self._next()

    def spend(self, seconds: float) -> float:
        """Have the call that is being made take *seconds*; return how many it has taken, all told."""
        self._spent_s += seconds
        return self._spent_s

    def _next(self) -> None:
        self._is_busy = True
        seconds, callback, args = self._queue.popleft()
        self.busy_s += seconds
        self._clock.at(self._clock.time() + seconds, self._call, callback, args)

    def _call(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        callback(*args)
        spent, self._spent_s = self._spent_s, 0.0
        if spent:
            self.busy_s += spent
            self._clock.at(self._clock.time() + spent, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self._queue:
            self._next()
        else:
            self._is_busy = False
