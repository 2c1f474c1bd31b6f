"""The log as a program may want it: lines for people, or JSON, with the episode in which each was written.

```python
configure_logging()                     # in colour on a terminal, else one JSON object a line
```

Without it the library hands its lines to the standard logger ``areal_core``, which shows warnings and errors
until the program configures it otherwise. With it comes one line more for each rollout that has ended, at the
level ``info``. The guide has a table of all events with their fields.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

from areal_core import _log
from areal_core._checks import check_flag
from areal_core._hiding import HIDDEN, names_a_key, without_keys
from areal_core._json import json_of, writable

__all__ = ["EpisodeFilter", "configure_logging"]

_CLEAR = frozenset({int, float, bool, type(None)})
_OWN = frozenset({"timestamp", "level", "event", "logger", "exception", "exc_info", "logger_name"})
"""Names that mean something to a line, or to what writes it for people."""


def configure_logging(
    level: int | str = "INFO", json: bool | None = None, stream: TextIO | None = None
) -> logging.Handler:
    """Show what the library logs from *level* on, on *stream*; return the handler that does.

    *json* True makes each line a JSON object, False writes for people, in colour where *stream* is a terminal
    and ``NO_COLOR`` is not set; None takes JSON where it is no terminal. *stream* None is stderr as it is
    now. Only the logger ``areal_core`` is configured; what it writes goes to no other handlers but its own.
    Called again, it replaces what it did before.

    Lines that user code writes in an episode, through this logger, through structlog with
    ``merge_contextvars`` or through a handler with an `EpisodeFilter`, have its ``rollout``, ``data_id`` and
    ``version`` from now on. API keys in lines are shown as ``***``, tracebacks without values of variables. A
    field that is called as a part of the line is, such as ``level``, has an underscore behind its name.

    Raises ValueError for a level that there is not; TypeError.
    """
    logger = logging.getLogger("areal_core")
    number = _level(level)
    if json is not None:
        check_flag("json", json)
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(_Formatter(_renderer(handler.stream, json)))
    forget()
    logger.addHandler(handler)
    logger.setLevel(number)
    logger.propagate = False
    _log.each_rollout = "info"
    _log.binds_episodes = True
    return handler


def forget() -> None:
    """Undo `configure_logging`."""
    logger = logging.getLogger("areal_core")
    for handler in [one for one in logger.handlers if isinstance(one, _Handler)]:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    _log.each_rollout = None
    _log.binds_episodes = False


class EpisodeFilter(logging.Filter):
    """Gives each record the attributes ``rollout``, ``data_id`` and ``version``, for formats that show them.

    They say in which episode it was logged, once `configure_logging` was called; "" outside of one. For a
    handler of your own: ``handler.addFilter(EpisodeFilter())``.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Give them to *record*, and let it pass."""
        bound = structlog.contextvars.get_contextvars()
        for name in _log.EPISODE:
            if not hasattr(record, name):
                setattr(record, name, bound.get(name, ""))
        return True


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, which another call replaces."""


def _level(level: object) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() in names:
        return names[level.upper()]
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    if isinstance(level, str):
        raise ValueError(f"level={level!r} is none; give one of {', '.join(names)}")
    raise TypeError(f"level is a {type(level).__name__}; give a text such as 'INFO', or a number")


class _Formatter(logging.Formatter):
    """Makes a line of a record: of one of ours with its fields, of any other with its message."""

    def __init__(self, render: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _told(record)
        for name, value in sorted(structlog.contextvars.get_contextvars().items()):
            fields.setdefault(name, value)
        level = record.levelname.lower()
        shown = {"timestamp": _moment(record.created), "level": level, "event": _shown("", event)}
        if record.name != "areal_core":
            shown["logger"] = record.name
        of_many_lines = {}
        if record.exc_info:
            of_many_lines["exception"] = without_keys(self.formatException(record.exc_info))
        if record.stack_info:
            of_many_lines[_log.OF_MANY_LINES] = without_keys(self.formatStack(record.stack_info))
        for field, value in fields.items():
            is_taken = field == _log.OF_MANY_LINES and not isinstance(value, str)
            name = f"{field}_" if is_taken else field
            while name in _OWN or name in shown or name in of_many_lines:
                name += "_"
            shown[name] = _shown(field, value)
        return self._render({**shown, **of_many_lines})


def _told(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the event, or the message, of *record*, and its fields."""
    line: object = record.msg
    if isinstance(line, _log.Line):
        return line.event, dict(line.fields)
    return record.getMessage(), {}


def _renderer(stream: TextIO, json: bool | None) -> Callable[[dict[str, Any]], str]:
    is_terminal = _is_terminal(stream)
    if json or (json is None and not is_terminal):
        return lambda line: json_of(line).decode()
    render = structlog.dev.ConsoleRenderer(
        colors=is_terminal and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,  # the others show the values of variables
    )
    return lambda line: writable(str(render(None, line["level"], line)))


def _is_terminal(stream: TextIO) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty is not None and isatty())


def _moment(created: float) -> str:
    """Return *created*, in seconds since 1970, as ISO 8601 has it, with milliseconds."""
    return f"{_second(int(created))}.{int(created % 1 * 1000):03}+00:00"


@functools.lru_cache(maxsize=2)
def _second(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat()[: len("2026-01-01T00:00:00")]


def _shown(name: str, value: Any) -> Any:
    """Return *value* as a line may have it: without keys, and without lines of its own."""
    if names_a_key(name):
        return HIDDEN
    kind = type(value)
    if kind in _CLEAR or (kind is str and value.isascii() and (value.isidentifier() or value.isalnum())):
        return value  # a number or a word: it holds no key, and has no lines of its own
    if isinstance(value, Mapping):
        return {_name_of(key): _shown(_name_of(key), one) for key, one in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
        return [_shown("", value[0]), _shown(_name_of(value[0]), value[1])]  # as headers may be given
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown("", one) for one in value]
    text = without_keys(value if isinstance(value, str) else _log.text_of(value))
    return text if name == _log.OF_MANY_LINES else _log.on_one_line(text)


def _name_of(key: object) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
