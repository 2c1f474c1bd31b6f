"""What a thread blocks on. A Ctrl-C, wherever it comes, leaves no lock held.

`threading.Event` and `threading.Condition` take their lock in Python code: a KeyboardInterrupt right
after the acquire leaves it held for good, and the loop thread then blocks on it. Here each lock is
taken and released by one call of C code, with nothing between it and the line above that a signal
could come after.

A signal that comes when the interpreter has last looked for one and is about to block (it may have to hand
over the GIL in between), or that the system gives to another thread, wakes nobody. So each wait looks up
now and then.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

_LOOK_UP_S = 0.25
"""How late a Ctrl-C may be."""


class Gate:
    """A door that opens once, lets every waiter through, and survives a Ctrl-C in any of them."""

    __slots__ = ("_lock", "is_open")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.is_open = False

    def open(self) -> None:
        """Let everybody through, now and later. Never blocks; may be called again."""
        self.is_open = True
        try:
            self._lock.release()
        except RuntimeError:  # it was open
            pass

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the gate is open, *timeout* seconds at most (None: no limit); return whether it is."""
        was_open = self.is_open
        if not was_open:
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            try:
                while (left := deadline - time.monotonic()) > 0:
                    if self._lock.acquire(timeout=min(left, _LOOK_UP_S)):
                        break
            finally:  # let the next one through, also when this one is interrupted
                if self.is_open:
                    try:
                        self._lock.release()
                    except RuntimeError:  # another was faster, which is as good
                        pass
        return self.is_open


class GateEvent(threading.Event):
    """A `threading.Event` made of gates."""

    def __init__(self) -> None:
        super().__init__()
        self._gate = Gate()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'set' if self.is_set() else 'unset'}>"

    def is_set(self) -> bool:
        return self._gate.is_open

    def set(self) -> None:
        self._gate.open()

    def clear(self) -> None:
        if self._gate.is_open:
            self._gate = Gate()

    def wait(self, timeout: float | None = None) -> bool:
        return self._gate.wait(timeout)


def thread_of_gates(target: Callable[[], object], name: str, *, daemon: bool) -> threading.Thread:
    """Make a thread that a Ctrl-C in its ``start`` harms neither: its own event would be left locked."""
    thread = threading.Thread(target=target, name=name, daemon=daemon)
    thread._started = GateEvent()  # type: ignore[attr-defined]
    return thread
