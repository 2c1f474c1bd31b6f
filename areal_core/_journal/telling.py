"""Log lines that are thought of while a lock is held, and handed on when it is not: `Lines`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from areal_core._log import get_logger, log

Say: TypeAlias = Callable[[str, str, dict[str, Any]], object]
"""Takes level, event and fields of a line, and only queues it: whoever calls may hold locks."""


class Lines:
    """Lines that wait. Any thread may use all of it, and none of it raises.

    A handler of the log may wait for a thread that waits for the lock of who has something to tell.
    """

    def __init__(self, logger: Any, say: Say | None) -> None:
        self._logger = get_logger(logger)
        self._say = say
        self._waiting: deque[tuple[str, str, dict[str, Any]]] = deque()

    def add(self, level: str, event: str, **fields: Any) -> None:
        """Have a line wait."""
        self._waiting.append((level, event, fields))

    def log(self) -> None:
        """Log what waits, on this thread, which may take as long as a handler likes."""
        for line in self._taken():
            log(self._logger, *line)

    def say(self) -> None:
        """Give what waits to who only queues it; log it, if there is none."""
        for line in self._taken():
            self._say_or_log(*line)

    def _say_or_log(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self._say is not None:
            try:
                self._say(level, event, fields)
            except Exception:
                pass
            else:
                return
        log(self._logger, level, event, fields)

    def _taken(self) -> list[tuple[str, str, dict[str, Any]]]:
        taken = []
        while self._waiting:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:  # another thread was faster
                break
        return taken
