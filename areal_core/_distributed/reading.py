"""What orders bring is unpickled, and others see how far that is: user code may not return from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from areal_core._distributed.wire import Head, Orders
from areal_core._executor.rollout import Plan

Plans = dict[int, Plan | BaseException]
Entry = tuple[int, Head | BaseException | None, list[int]]

UNPICKLED = "being unpickled at its worker"
"""The stage of what takes long to read; with more of its orders, where that is a plan."""

_LONG_S = 0.1


class Reader:
    """Reads orders, one after the other, with *loads*. What cannot be read is the error of that."""

    def __init__(self, loads: Callable[[bytes], Any]) -> None:
        self._loads = loads
        self._now: tuple[Orders, Plans, list[Entry]] | None = None  # what is read now, and what of it was
        self._seen: tuple[object, int] = None, 0  # what was read at the last look, and how much of it was
        self._seen_at = 0.0  # when that was seen first

    def read(self, orders: Orders) -> tuple[Plans, list[Entry]]:
        """Return the plans and what is to be played."""
        plans: Plans = {}
        entries: list[Entry] = []
        self._now = orders, plans, entries
        for number, data in orders.plans.items():
            plans[number] = self._read(data)
        for number, head, places in orders.give:
            entries.append((number, None if head is None else self._read(head), places))
        self._now = None
        return plans, entries

    def _read(self, data: bytes) -> Any:
        try:
            return self._loads(data)
        except BaseException as error:  # of the user's code, which may do anything
            return error

    def look(self) -> tuple[float, list[tuple[int, int, tuple[Any, ...]]]]:
        """Return for how long the same thing is read, as far as anybody looked.

        And the stage of what is to be played with it, if that is long. From any thread, one at a time.
        """
        now = self._now
        if now is None:
            self._seen = None, 0  # nor is it kept
            return 0.0, []
        orders, plans, entries = now
        seen = orders, len(plans) + len(entries)
        if self._seen[0] is not orders or self._seen[1] != seen[1]:
            self._seen, self._seen_at = seen, time.monotonic()
            return 0.0, []
        passed_s = time.monotonic() - self._seen_at
        if passed_s < _LONG_S:
            return passed_s, []
        stage = UNPICKLED, None, passed_s, 0, None
        # Which rollouts have a plan that cannot be read is not known before they are read.
        of_these = orders.give if len(plans) < len(orders.plans) else orders.give[len(entries) :][:1]
        return passed_s, [(number, place, stage) for number, _, places in of_these for place in places]
