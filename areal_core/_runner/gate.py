"""The one thing a thread blocks on."""

from __future__ import annotations

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
        self._unlock()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the gate is open, *timeout* seconds at most (None: no limit); return whether it is."""
        if not self.is_open:
            try:
                self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
            finally:
                if self.is_open:
                    self._unlock()  # for the next waiter, also when this one is interrupted
        return self.is_open

    def _unlock(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # somebody else unlocked it first, which is as good
