"""Says in the log which server is slow: `SlowServers`.

::

    every two seconds, what each server has done        Speeds: less than half of what the others give
    slow at each look for ten seconds                   server_is_slow, every five minutes at most
      (a minute where replies come whole)
    the loop was late                                   nothing counts that was before
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from areal_core._engine.events import Events
from areal_core._engine.server import Server
from areal_core._engine.speeds import Speed, Speeds
from areal_core._engine.stats import ServerStats

LATE_S = 0.1
"""A loop that comes so late to what it was to do keeps replies waiting, and any server may seem slow."""

_EVERY_S = 2.0
_LASTING_S = 10.0  # a server that has just been given weights is slow for some seconds
_LASTING_WHOLE_S = 60.0  # where replies come whole, a server may seem slow because its first ones are long
_AGAIN_S = 300.0


class SlowServers:
    """Judges servers by what was `note`-d of them. For one loop: who looks from another has his own."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._noted = -math.inf
        self._speeds = Speeds()
        self._slow_since: dict[str, float] = {}

    def is_due(self, now: float, late_s: float) -> bool:
        """Return whether to call `note` at *now*, monotonic seconds; the loop is *late_s* seconds late."""
        if late_s >= LATE_S:
            self._speeds = Speeds()
            self._slow_since.clear()
        return now - self._noted >= _EVERY_S

    def note(self, now: float, servers: Sequence[tuple[Server, ServerStats]]) -> None:
        """Take note of how *servers* stand at *now*, and tell of those that have been slow for long."""
        self._noted = now
        self._speeds.add(now, [stats for _, stats in servers])
        speeds = self._speeds.now()
        slow = {name for name, speed in speeds.items() if speed.is_slow}
        self._slow_since = {name: self._slow_since.get(name, now) for name in slow}
        usual = _usual(speeds, {stats.name for _, stats in servers if stats.why_out is None})
        for server, stats in servers:
            if stats.name in slow and self._is_to_be_told(server, stats, now):
                server.slow_told_at = now
                self._events.server_is_slow(stats.name, speeds[stats.name].each or 0.0, usual)

    def _is_to_be_told(self, server: Server, stats: ServerStats, now: float) -> bool:
        lasting_s = _LASTING_S if stats.streams else _LASTING_WHOLE_S
        return now - self._slow_since[stats.name] >= lasting_s and now - server.slow_told_at >= _AGAIN_S


def _usual(speeds: dict[str, Speed], in_rotation: set[str]) -> float:
    """Return what a request gets per second from the median one of those that are not slow."""
    each = [
        speed.each
        for name, speed in speeds.items()
        if name in in_rotation and speed.each is not None and not speed.is_slow
    ]
    return statistics.median_high(each) if each else 0.0
