"""When the generations of an engine have to be over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Protocol

from areal_core._engine.opening import Opening

Loop = asyncio.AbstractEventLoop


class Late(Protocol):
    """What a deadline is of."""

    loop: Loop

    def left_s(self) -> float:
        """Return how many seconds are left."""

    def end(self) -> None:
        """End: there is no time left."""


class Deadlines:
    """Those of the generations under way: *timeout_s* seconds each, in which generation is open.

    All have the same, so who began first is over first, and one timer does for all of a loop: those of
    thousands would take longer than what they are to end.
    """

    def __init__(self, timeout_s: float, opening: Opening) -> None:
        self.timeout_s = timeout_s
        self.opening = opening
        self._lock = threading.RLock()  # reentrant: the garbage collector may end one in the middle of this
        self._queues: dict[Loop, _Queue] = {}

    def begin(self, one: Late) -> None:
        """Have *one* end in time, which has begun now, on the running loop."""
        with self._lock:
            queue = self._queues.get(one.loop) or _Queue(one.loop, self.opening)
            queue.add(one)
            self._queues[one.loop] = queue  # also after the garbage collector has just ended its last one

    def drop(self, one: Late) -> None:
        """Know no more of *one*, which is over."""
        with self._lock:
            queue = self._queues.get(one.loop)
            if queue is not None:  # else all of them were over at once
                queue.remove(one)
                if queue.is_empty:
                    del self._queues[one.loop]


class _Queue:
    """The deadlines of one loop."""

    def __init__(self, loop: Loop, opening: Opening) -> None:
        self._loop = loop
        self._opening = opening
        self._waiting: dict[Late, None] = {}  # the next one first
        self._unset: Callable[[], None] | None = None  # ends the wait for the next; None: there is none

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def add(self, one: Late) -> None:
        self._waiting[one] = None
        if self._unset is None:
            self._look_after(one.left_s())

    def remove(self, one: Late) -> None:
        self._waiting.pop(one, None)
        if self.is_empty and self._unset is not None:
            self._unset()
            self._unset = None

    def _look_after(self, seconds: float) -> None:
        self._unset = self._loop.call_later(seconds, self._look).cancel

    def _look(self) -> None:
        self._unset = None
        while (one := next(iter(self._waiting), None)) is not None:
            if not self._opening.is_open:
                self._unset = self._opening.when_open(self._look)
                return
            if (left_s := one.left_s()) > 0:
                self._look_after(left_s)
                return
            self.remove(one)
            one.end()
