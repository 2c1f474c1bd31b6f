"""Says in the log that offloaded calls wait for workers for long: `Shortage`."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import Context
from typing import Any

from areal_core._log import get_logger, log
from areal_core._offload.stats import OffloadStats

_WINDOW_S = 10.0  # the rewards of a batch may come in a crowd, and that is over sooner
_SHARE = 0.5  # of that time with more calls that wait than calls that are made
_AGAIN_S = 60.0


class Shortage:
    """Judges so many *workers* by what was `note`-d; *stats* tells how things stand with them.

    That is done when a call gets the last free worker: there is no timer. For one loop.
    """

    def __init__(self, workers: int, stats: Callable[[], OffloadStats]) -> None:
        self._workers = workers
        self._stats = stats
        self._begun: float | None = None
        self._noted = 0.0
        self._waiting = 0  # while it is short of workers, else 0
        self._waiting_s = 0.0
        self._short_s = 0.0
        self._told = -math.inf

    def note(self, now: float, made: int, waiting: int) -> None:
        """Note that from *now* on, in monotonic seconds, so many calls are made, and so many wait."""
        if self._begun is None:
            self._begun = now
        if self._waiting:
            self._short_s += now - self._noted
            self._waiting_s += self._waiting * (now - self._noted)
        self._noted = now
        # Only then: what the remedy is depends on what those do that are made.
        if made >= self._workers and now - self._begun >= _WINDOW_S:
            self._judge(now, now - self._begun)
        self._waiting = waiting if waiting > made else 0

    def _judge(self, now: float, seconds: float) -> None:
        if self._short_s >= _SHARE * seconds and now - self._told >= _AGAIN_S:
            self._told = now
            waiting = round(self._waiting_s / self._short_s)
            self._tell(waiting, f"{self._short_s / seconds:.0%} of {seconds:.3g} s")
        self._begun, self._short_s, self._waiting_s = now, 0.0, 0.0

    def _tell(self, waiting: int, share: str) -> None:
        stats = self._stats()
        _log_line(
            "warning",
            "offload_waiting",
            place=stats.place,
            workers=stats.workers,
            waiting=waiting,
            share=share,
            remedy=stats.advice(),
        )


def _log_line(level: str, event: str, **fields: Any) -> None:
    # Not with what the episode has bound whose call it happens to be: it concerns all.
    Context().run(log, get_logger(), level, event, fields)
