"""What the library logged, as tests read it: fixture ``log_lines``."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple


class LogLine(NamedTuple):
    """One record of the standard logger ``areal_core``."""

    level: str
    """In lower case: "debug", "info", "warning", "error"."""

    message: str
    error: BaseException | None
    """The exception whose traceback the record carries."""


class LogLines(list[LogLine]):
    """All lines so far, the oldest first; other threads append while a test reads."""

    def __init__(self) -> None:
        super().__init__()
        self._grew = threading.Condition()

    def add(self, line: LogLine) -> None:
        """Append *line* and wake whoever waits for it."""
        with self._grew:
            self.append(line)
            self._grew.notify_all()

    def of(self, level: str) -> list[str]:
        """Return the messages of one level."""
        return [line.message for line in list(self) if line.level == level]

    def wait_for(self, text: str, timeout: float = 10.0) -> LogLine:
        """Wait until a message contains *text* and return that line. Raises AssertionError if none comes."""
        with self._grew:
            if not self._grew.wait_for(lambda: any(text in line.message for line in self), timeout):
                raise AssertionError(f"no line with {text!r} within {timeout} s; there is {list(self)}")
            return next(line for line in self if text in line.message)


class LogLinesHandler(logging.Handler):
    """Render each record and add it to *lines*."""

    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Add one record, in the thread that logged it."""
        error = record.exc_info[1] if record.exc_info else None
        self._lines.add(LogLine(record.levelname.lower(), record.getMessage(), error))
