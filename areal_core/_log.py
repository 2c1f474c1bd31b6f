"""Log events as structlog does, through the standard logger ``areal_core``.

structlog's own default prints everything, debug included, to stdout. Ours hands a finished line to
the standard logger instead, whatever the program did or did not configure: an unconfigured program
then sees warnings and errors on stderr and nothing on stdout.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog

# Got here once: a Ctrl-C inside getLogger leaves the lock of all logging held for good, up to 3.12.
_standard = logging.getLogger("areal_core")

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
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
        )
    if not callable(getattr(logger, "warning", None)):
        raise TypeError(f"logger={logger!r} cannot log; pass a structlog or a standard logger, or None")
    return logger


def _drop_below_level(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Do what structlog's `filter_by_level` does, which asks for more than a LoggerAdapter has."""
    if not logger.isEnabledFor(logging.getLevelNamesMapping()[method.upper()]):
        raise structlog.DropEvent
    return event


def _to_standard_call(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """Render ``event key=value ...`` and leave the traceback to the standard logging."""
    name = event.pop("event")
    options = {"exc_info": event.pop("exc_info")} if "exc_info" in event else {}
    pairs = _pairs(None, "", event)
    return (f"{name} {pairs}" if pairs else name,), options
