"""Which of several policy versions, read or told by several threads, is the last."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from areal_core._executor.desk import Desk


class Versions:
    """Tells the core of *desk* of the versions that *read* gives, in the order in which it was asked.

    Each caller takes a number before he reads: so what the holder of a later one has read is no older, though
    it may come to the desk before.
    """

    def __init__(self, desk: Desk, read: Callable[[], int]) -> None:
        self._desk = desk
        self._read = read
        self._numbers = itertools.count(1)
        self._last = 0

    def look(self) -> None:
        """Read the version and tell it; in callers' threads only. Raises what *read* raises."""
        number = next(self._numbers)
        self._desk.post(self._take, number, self._read())

    def tell(self, version: int) -> None:
        """Tell *version*, which was set a moment ago. Never blocks."""
        self._desk.post(self._take, next(self._numbers), version)

    def _take(self, number: int, version: int) -> None:
        if number > self._last:
            self._last = number
            self._desk.core.set_version(version)
