"""All that is logged in a soak run: endings go to the books, what may not be is a complaint."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from _soak_books import STATUSES, Books
from _soak_items import PlannedError, hold_the_loop
from areal_core.errors import ControlError, InferenceError

EXPECTED: Mapping[str, str] = {
    "rollout_failed": "workflows raise, and servers fail longer than is tried again; for these errors only",
    "rollout_timed_out": "some workflows never end",
    "rollout_cancelled_itself": "some workflows do that",
    "loop_blocked": "some workflows sleep on the loop",
    "loop_is_late": "and what sleeps on it for less adds up",
    "server_is_slow": "some faults are slow replies",
    "server_is_avoided": "several faults in a row may hit one server",
    "server_out_of_rotation": "servers are killed, and fail at control calls",
    "server_stays_out_of_rotation": "a server that is back may fail at the first weights it is given",
    "weights_not_updated": "servers fail at that, and some of the weights are not there",
    "task_failed": "a control call whose caller was interrupted may fail afterwards; for these errors only",
    "uncollected_rollouts_discarded": "the executor is stopped with trajectories no batch has taken",
    "trajectories_not_collected": "the same of those that no batch was to take, said when it is stopped",
    "admission_stalled": "where weights cannot be updated the version does not rise",
    "long_rollouts_hardly_trained": "what takes long is too old afterwards, and much does here",
}
"""The warnings and errors that belong to such a run, and why."""


class Log(logging.Handler):
    """A logger for executor and engine, and a handler for all that others log."""

    def __init__(self, books: Books) -> None:
        super().__init__()
        self._books = books
        self.counts = Counter[str]()
        """How often each warning and error came."""
        self.accused = Counter[str]()
        """How often each function was said to have blocked the loop."""

    def install(self) -> None:
        """Have everything logged or warned of in this process come here."""
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.WARNING)
        for name in ("areal_core", "asyncio"):
            logging.getLogger(name).propagate = True
        logging.captureWarnings(True)
        warnings.simplefilter("always", ResourceWarning)
        sys.unraisablehook = lambda unraisable: self._surprise(f"unraisable: {unraisable.exc_value!r}")
        threading.excepthook = lambda ended: self._surprise(f"a thread died: {ended.exc_value!r}")

    # -- as the logger of executor and engine -----------------------------------------------------------

    def debug(self, event: str, **fields: Any) -> None:
        self._hear_of_rollout(event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self.counts[event] += 1

    def warning(self, event: str, **fields: Any) -> None:
        self._hear(event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._hear(event, fields)

    def _hear(self, event: str, fields: Mapping[str, Any]) -> None:
        self.counts[event] += 1
        self._hear_of_rollout(event, fields)
        if event == "loop_blocked":
            self.accused[str(fields["function"]).rpartition(".")[2]] += 1
        if event not in EXPECTED or not _is_expected(event, fields):
            shown = {name: value for name, value in fields.items() if name != "stack"}
            self._surprise(f"{event} {shown}")

    def _hear_of_rollout(self, event: str, fields: Mapping[str, Any]) -> None:
        if not event.startswith("rollout_") or "data_id" not in fields:
            return
        number, what = fields["data_id"], event[8:]
        if what == "started":
            self._books.started(number, fields["rollout"])
        elif what == "went_stale":
            self._books.went_stale(number, fields["runs_again"])
        else:
            self._books.ended(number, _ALIASES.get(what, what))

    # -- as a handler ------------------------------------------------------------------------------------

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit *record* without a lock: a Ctrl-C between taking it and using it would leave it held."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of what somebody else has logged."""
        message = record.getMessage()
        if record.name == "asyncio" and message.startswith("Executing "):
            return  # in its debug mode it tells of slow callbacks
        self._surprise(f"{record.name}: {message}")

    def _surprise(self, what: str) -> None:
        self._books.complaints.say(f"not expected in the log: {what[:600]}")

    @property
    def blocks_named(self) -> int:
        """How often the function that blocks the loop was named as that."""
        return self.accused[hold_the_loop.__name__]


_ALIASES = {"cancelled_itself": "cancelled"}
assert not _ALIASES.keys() & set(STATUSES)


def _is_expected(event: str, fields: Mapping[str, Any]) -> bool:
    error = fields.get("exc_info")
    if event == "rollout_failed":
        return isinstance(error, PlannedError | InferenceError)
    return event != "task_failed" or isinstance(error, ControlError)
