"""How fast each inference server is, and which of them is slow: `Speeds`.

The servers of a run have much the same to do, so a slow one is told by the others: it is slow when a request
gets less than half as many tokens per second from it, in the last minute, as from the median of those in
rotation (the faster one of the two in the middle: of two servers, the other).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from areal_core._engine.stats import ServerStats

_WINDOW_S = 60.0  # a server that starts again, or gets new weights, is slow for some seconds
_EVERY_S = 1.0
_SLOW = 0.5
_LEAST_S = 10.0  # of requests: with less to go by, chance decides


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one server has been lately."""

    tokens_per_s: float
    """Of all its requests together."""
    each: float | None
    """Tokens per second that one request got; None: it had none."""
    is_slow: bool = False
    """Whether that is less than half of what the others give."""


class Speeds:
    """Speeds of servers, of the stats that were `add`-ed. Not for several threads."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, ServerStats]]] = deque()
        self._first: dict[str, tuple[float, ServerStats]] = {}

    def add(self, at_s: float, servers: Sequence[ServerStats]) -> None:
        """Take note of how *servers* stood at *at_s*, which is later than before. It may begin anew."""
        now = {one.name: one for one in servers}
        if self._samples:
            last_s, last = self._samples[-1]
            if at_s < last_s or any(_fell(now[name], last[name]) for name in now.keys() & last.keys()):
                self._samples.clear()
                self._first.clear()
            elif len(self._samples) > 1 and at_s - self._samples[-2][0] < _EVERY_S:
                self._samples.pop()
        self._samples.append((at_s, now))
        while at_s - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        self._first = {name: self._first.get(name, (at_s, one)) for name, one in now.items()}

    def now(self) -> dict[str, Speed]:
        """Return the speed of each server that has been there for two samples, by its name."""
        if not self._samples:
            return {}
        at_s, latest = self._samples[-1]
        spans = {name: self._span(name, at_s, one) for name, one in latest.items()}
        found = {name: span for name, span in spans.items() if span is not None}
        each = {
            name: tokens / busy_s
            for name, (_, tokens, busy_s) in found.items()
            if busy_s >= _LEAST_S and latest[name].why_out is None
        }
        slow = _slow(each)
        return {
            name: Speed(
                tokens_per_s=round(tokens / seconds, 2),
                each=round(tokens / busy_s, 3) if busy_s > 0 else None,
                is_slow=name in slow,
            )
            for name, (seconds, tokens, busy_s) in found.items()
        }

    def _span(self, name: str, at_s: float, latest: ServerStats) -> tuple[float, int, float] | None:
        """Return the seconds that are looked at, and what was added in them: tokens, and time of requests."""
        since_s, then = self._first[name]
        if latest.streams:  # else nothing has come of a request that goes on, and all of it is looked at
            since_s, then = next((at, seen[name]) for at, seen in self._samples if name in seen)
        if at_s <= since_s:
            return None
        return at_s - since_s, latest.tokens - then.tokens, latest.seconds - then.seconds


def _fell(now: ServerStats, last: ServerStats) -> bool:
    return now.tokens < last.tokens or now.seconds < last.seconds


def _slow(each: Mapping[str, float]) -> set[str]:
    """Return who gives less than half of what the median does."""
    least = _SLOW * statistics.median_high(each.values()) if each else 0.0
    return {name for name, speed in each.items() if speed < least}
