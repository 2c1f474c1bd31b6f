"""What held rollouts up in the last seconds, on average: `Lately`. One look alone says little."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

import msgspec

from areal_core._executor.snapshot import Snapshot

LATE_S = 0.25
"""From this delay on the loop is late."""

_WINDOW_S = 10.0


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """The offloaded calls of one place, on average."""

    busy: float
    """How many were made."""
    waiting: float
    """How many waited for a worker."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What held rollouts up in the last ten seconds."""

    late: float
    """The share of the looks at which the loop was late by `LATE_S` or more."""
    stages: dict[str, float]
    """How many rollouts were in which stage, on average."""
    calls: dict[str, Calls]
    """By place, ``thread`` and ``process``."""


class _Look(NamedTuple):
    at: float
    is_late: bool
    stages: dict[str, int]
    calls: dict[str, tuple[int, int]]


class Lately:
    """The last seconds of the snapshots that were `add`-ed. Not for several threads."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque()

    def add(self, snapshot: Snapshot) -> None:
        """Take note of a *snapshot*, which is later than those before, or of another life."""
        at = snapshot.uptime_s
        if self._looks and at < self._looks[-1].at:
            self._looks.clear()
        calls: dict[str, tuple[int, int]] = {one.place: (one.busy, one.waiting) for one in snapshot.offloaded}
        self._looks.append(_Look(at, is_late(snapshot), snapshot.stages, calls))
        while at - self._looks[0].at > _WINDOW_S:
            self._looks.popleft()

    def held(self) -> Held:
        """Return the averages; all of it is 0 before the first snapshot."""
        count = max(1, len(self._looks))
        stages: Counter[str] = Counter()
        busy: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for look in self._looks:
            stages.update(look.stages)
            busy.update({place: calls[0] for place, calls in look.calls.items()})
            waiting.update({place: calls[1] for place, calls in look.calls.items()})
        return Held(
            late=sum(look.is_late for look in self._looks) / count,
            stages={stage: round(total / count, 3) for stage, total in stages.items()},
            calls={
                place: Calls(busy=round(total / count, 3), waiting=round(waiting[place] / count, 3))
                for place, total in busy.items()
            },
        )


def is_late(snapshot: Snapshot) -> bool:
    """Return whether the loop is late now."""
    return snapshot.loop_lag_s is not None and snapshot.loop_lag_s >= LATE_S


def held_at(snapshot: Snapshot) -> Held:
    """Return what one *snapshot* alone says."""
    lately = Lately()
    lately.add(snapshot)
    return lately.held()
