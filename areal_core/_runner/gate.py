"""The one thing a thread blocks on."""

from __future__ import annotations

import contextlib
import threading


class Gate:
    """A door that opens once, lets every waiter through, and survives a Ctrl-C in any of them.

    `threading.Event` and `threading.Condition` take their lock in Python code: a KeyboardInterrupt
    right after the acquire leaves it held for good, and the loop thread then blocks on it.
    """

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.is_open = False

    def open(self) -> None:
        """Let everybody through, now and later. Never blocks; may be called again."""
        self.is_open = True
        self._let_next_through()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the gate is open, *timeout* seconds at most (None: no limit); return whether it is."""
        if not self.is_open:
            try:
                self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
            finally:
                self._let_next_through()  # also when this one is interrupted
        return self.is_open

    def _let_next_through(self) -> None:
        if self.is_open:
            with contextlib.suppress(RuntimeError):  # another was faster, which is as good
                self._lock.release()
