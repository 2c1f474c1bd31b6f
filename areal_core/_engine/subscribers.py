"""Callbacks that are told of something: of versions, of generation that opens and closes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscribers(Generic[T]):
    """Who is told. Any thread may add one, end that, and tell.

    *takes* says in errors what a callback is given; *raised* is called with what one raises.
    """

    def __init__(self, takes: str, raised: Callable[[Exception], None]) -> None:
        self._takes = takes
        self._raised = raised
        self._lock = threading.RLock()
        self._callbacks: dict[object, Callable[[T], None]] = {}

    def renew(self) -> None:
        """Forget, in a forked process, who held the lock in the parent."""
        self._lock = threading.RLock()

    def add(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Have *callback* told from now on; return what ends that. Raises TypeError."""
        if not callable(callback):
            raise TypeError(
                f"callback={callback!r} cannot be called; pass a function that takes {self._takes}"
            )
        key = object()
        with self._lock:
            self._callbacks[key] = callback

        def end() -> None:
            with self._lock:
                self._callbacks.pop(key, None)

        return end

    def now(self) -> list[Callable[[T], None]]:
        """Return who is told now."""
        with self._lock:
            return list(self._callbacks.values())

    def tell(self, value: T, callbacks: list[Callable[[T], None]]) -> None:
        """Call *callbacks* with *value*, in this thread. One that raises keeps it from nobody."""
        for callback in callbacks:
            try:
                callback(value)
            except Exception as error:
                self._raised(error)
