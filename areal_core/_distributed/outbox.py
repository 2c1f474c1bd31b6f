"""What has ended at a worker, until it is fetched: as much at once as comes in a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any


class Outbox:
    """Filled by the loop thread, emptied by the threads of calls."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._changed = threading.Condition(threading.Lock())
        self._things: list[Any] = []
        self._since = 0.0  # when the first of them came
        self._is_due = False
        self._is_closed = False

    def put(self, things: Sequence[Any], *, is_last: bool) -> None:
        """Add *things*; *is_last* when nothing more is under way, so that nobody has to wait for company.

        Whoever waits then returns, also with nothing.
        """
        with self._changed:
            was_empty = not self._things
            if was_empty:
                self._since = time.monotonic()
            self._things += things
            self._is_due = self._is_due or is_last or len(self._things) >= self._enough
            if was_empty or self._is_due:
                self._changed.notify()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def take(self, patience_s: float, linger_s: float) -> list[Any]:
        """Return what is there; wait *patience_s* seconds for the first, and *linger_s* for more.

        Where there is more than enough, the rest is for the next call: while one lot is read, that is made.
        """
        deadline = time.monotonic() + patience_s
        with self._changed:
            while not (self._is_closed or self._is_due):
                # All who wait go by when the first came: one after the other they would wait half as long.
                until = self._since + linger_s if self._things else deadline
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            things, self._things = self._things[: self._enough], self._things[self._enough :]
            self._is_due = bool(self._things)
            if self._is_due:
                self._changed.notify()
            return things
