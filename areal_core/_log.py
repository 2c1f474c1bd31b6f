"""Log events as structlog does, through the standard logger ``areal_core``.

structlog's own default prints everything, debug included, to stdout. Ours hands a finished line to
the standard logger instead, whatever the program did or did not configure: an unconfigured program
then sees warnings and errors on stderr and nothing on stdout.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

# Got here once: a Ctrl-C inside getLogger leaves the lock of all logging held for good, up to 3.12.
_standard = logging.getLogger("areal_core")

OF_MANY_LINES = "stack"
"""The one field that is not written on one line."""

EPISODE = ("rollout", "data_id", "version")
"""What lines that are logged in an episode are given, once `binds_episodes`."""

each_rollout: str | None = None
"""The level at which the end of each rollout is logged; None: that is not asked for."""

binds_episodes = False
"""Whether episodes bind `EPISODE` to their contexts, for the lines of user code."""

_DESCRIBED_AT_MOST = 500  # characters: an error may carry a whole prompt

_pairs = structlog.processors.KeyValueRenderer(repr_native_str=False)


def get_logger(logger: Any = None) -> Any:
    """Return a structlog logger: *logger* itself if it is one, else one on top of the standard *logger*.

    None means the standard logger ``areal_core``. Raises TypeError for what cannot log.
    """
    if logger is None:
        logger = _standard
    if isinstance(logger, logging.Logger | logging.LoggerAdapter):
        return structlog.wrap_logger(
            logger,
            processors=[_drop_below_level, _to_standard_call],
            wrapper_class=_OurLogger,
            context_class=dict,
        ).bind()  # once, and not again at every line
    if not callable(getattr(logger, "warning", None)):
        raise TypeError(f"logger={logger!r} cannot log; pass a structlog or a standard logger, or None")
    return logger


def log(logger: Any, level: str, event: str, fields: Mapping[str, Any], at_s: float | None = None) -> None:
    """Log one event with *logger*. One that raises costs the line, and is told of by ours; never raises.

    *at_s* is when it was, in seconds since 1970: a plain `logging.Logger` is told; None: now.
    """
    try:
        if type(logger) is _OurLogger:
            logger.hand_on(level, event, fields, at_s)
        else:
            getattr(logger, level)(event, **fields)
    except BaseException as error:
        with contextlib.suppress(BaseException):  # a handler may fail for our own logger too
            get_logger().error("logger_raised", lost_event=event, error=describe(error))


def describe(error: BaseException | None) -> str:
    """Say what a traceback's last line says. Not its repr: aiohttp's shows every header, keys included."""
    name = type(error).__qualname__
    try:
        return f"{name}: {error}"[:_DESCRIBED_AT_MOST] if str(error) else name
    except BaseException:
        return f"{name} (its str raises)"


def text_of(value: object) -> str:
    """Return the repr of *value*, or what stands for one that raises."""
    try:
        return repr(value)
    except Exception as error:
        return f"<a {type(value).__qualname__} whose repr raises {type(error).__qualname__}>"


def bind_episode(rollout: int, data_id: Any, version: int) -> None:
    """Have lines that are logged in this context from now on say in which episode that is."""
    bind = structlog.contextvars.bind_contextvars
    if data_id is not None:
        bind(rollout=rollout, version=version, data_id=data_id)
    else:  # it may be one that was submitted in another
        bind(rollout=rollout, version=version)
        structlog.contextvars.unbind_contextvars("data_id")


def _drop_below_level(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Do what structlog's `filter_by_level` does, which asks for more than a LoggerAdapter has."""
    if not logger.isEnabledFor(_LEVELS[method]):
        raise structlog.DropEvent
    return event


_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}
_LEVELS["exception"] = logging.ERROR  # newer versions of structlog give the name of the method


class _OurLogger(structlog.stdlib.BoundLogger):
    """One on top of a standard logger."""

    def hand_on(self, level: str, event: str, fields: Mapping[str, Any], at_s: float | None = None) -> None:
        """Do what the method called *level* does, in half the time: there is a line for each rollout."""
        logger, number = self._logger, _LEVELS[level]
        if not logger.isEnabledFor(number):
            return
        (line,), options = _to_standard_call(None, level, {**self._context, **fields, "event": event})
        error = options.get("exc_info")
        if type(logger) is not logging.Logger or not isinstance(error, BaseException | None):
            logger.log(number, line, **options)
            return
        raised = None if error is None else (type(error), error, error.__traceback__)
        # What log() does, but for the search for who called: that is always this.
        record = logger.makeRecord(logger.name, number, __file__, _LINE, line, (), raised, "hand_on")
        if at_s is not None:
            _date_back(record, at_s)
        logger.handle(record)


_LINE = _OurLogger.hand_on.__code__.co_firstlineno


def _date_back(record: logging.LogRecord, at_s: float) -> None:
    record.relativeCreated -= (record.created - at_s) * 1000
    record.created = at_s
    record.msecs = float(int(at_s % 1 * 1000))


class Line:
    """The message of a record of ours: ``event key=value ...``, written when a handler asks for it."""

    __slots__ = ("event", "fields")

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.event = event
        self.fields = fields

    def __str__(self) -> str:
        shown = {
            key: value if key == OF_MANY_LINES else on_one_line(value) for key, value in self.fields.items()
        }
        pairs = _pairs(None, "", shown)
        return f"{self.event} {pairs}" if pairs else self.event

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # a handler that pickles records sends them as text


def _to_standard_call(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[Line], dict[str, Any]]:
    """Leave the traceback to the standard logging."""
    options = {"exc_info": event.pop("exc_info")} if "exc_info" in event else {}
    return (Line(event.pop("event"), event),), options


def on_one_line(value: object) -> str:
    """Return *value* in characters that can be shown: an id or an error must not write lines of its own."""
    text = value if isinstance(value, str) else repr(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
