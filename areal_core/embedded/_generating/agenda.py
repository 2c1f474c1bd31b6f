"""When to look at which generation: one timer for all of them, and none when there are none."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

from areal_core.embedded._generating.clock import RunningClock
from areal_core.embedded._generating.generation import Generation

# uvloop rounds to whole milliseconds: a timer that rings too early finds nothing due, and rings again a
# whole tick later.
_LATER_S = 0.0005


class Agenda:
    """Call *ring* when a generation is due, at most once in *tick_s* seconds."""

    def __init__(self, clock: RunningClock, tick_s: float, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._ring = ring
        # Entries that are not their generation's `wake` any more are old; they are few.
        self._entries: list[tuple[float, int, Generation]] = []
        self._old = 0
        self._order = itertools.count()
        self._rang = -tick_s
        self._timer: asyncio.Handle | None = None
        self._set_for = 0.0

    def put(self, generation: Generation, when: float) -> None:
        """Look at *generation* at *when* on the running clock, and not when it was said before."""
        self.drop(generation)
        generation.wake = when
        heapq.heappush(self._entries, (when, next(self._order), generation))

    def drop(self, generation: Generation) -> None:
        """Do not look at *generation*."""
        if generation.wake is None:
            return
        generation.wake = None
        self._old += 1
        if self._old * 2 > len(self._entries):
            self._entries = [one for one in self._entries if one[2].wake == one[0]]
            heapq.heapify(self._entries)
            self._old = 0

    def take(self, now: float) -> list[Generation]:
        """Return those to look at by *now*, and forget when."""
        due = []
        while self._entries and self._entries[0][0] <= now:
            when, _, generation = heapq.heappop(self._entries)
            if generation.wake == when:
                generation.wake = None
                due.append(generation)
            else:
                self._old -= 1
        return due

    def arm(self) -> None:
        """Set the timer to the first that is due; no generation is while the clock stands still."""
        if self._clock.frozen or not self._entries:
            self._disarm()
            return
        when = max(self._entries[0][0], self._rang + self._tick_s)
        if self._timer is not None:
            if self._set_for <= when:
                return
            self._disarm()
        loop = asyncio.get_running_loop()
        delay = when - self._clock.now()
        self._set_for = when
        if delay > 0:
            self._timer = loop.call_later(delay + _LATER_S, self._fire)
        else:
            self._timer = loop.call_soon(self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._rang = self._clock.now()
        self._ring()
