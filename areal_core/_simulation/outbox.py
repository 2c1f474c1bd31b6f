"""What has ended at a worker, until it is fetched: `areal_core._distributed.outbox` in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from areal_core._distributed.leases import Ended
from areal_core._distributed.pace import LEAST_BEAT_S, LEAST_LINGER_S
from areal_core._simulation.clock import VirtualClock


class VirtualOutbox:
    """Hands to *on_fetched* what there is when a call comes for it, or as soon as it is worth it."""

    def __init__(self, clock: VirtualClock, enough: int, on_fetched: Callable[[list[Ended]], None]) -> None:
        self._clock = clock
        self._enough = enough
        self._on_fetched = on_fetched
        self._things: list[Ended] = []
        self._is_due = False
        self._asked = 0  # how many calls wait
        self._since = 0.0  # when the first of the things came
        self._linger_s, self._beat_s = LEAST_LINGER_S, LEAST_BEAT_S
        self._alarm = 0
        self._alarm_at = math.inf

    def put(self, things: Sequence[Ended], *, is_last: bool) -> None:
        """Add *things*; *is_last* when nothing more is under way."""
        was_empty = not self._things
        if was_empty:
            self._since = self._clock.time()
        self._things += things
        self._is_due = self._is_due or is_last
        if not self._asked or not self._things:
            return
        if self._is_ripe():
            self._give()
        elif was_empty:
            self._set_alarm(self._since + self._linger_s)

    def fetch(self, linger_s: float = LEAST_LINGER_S, beat_s: float = LEAST_BEAT_S) -> None:
        """Take note that a call has come, which says how soon it wants what has ended, or a sign of life."""
        self._asked += 1
        self._linger_s, self._beat_s = linger_s, beat_s
        now = self._clock.time()
        if not self._things:
            if now + beat_s < self._alarm_at:  # else another call waits, and not so long
                self._set_alarm(now + beat_s)
        elif self._is_ripe() or self._since + linger_s <= now:
            self._give()
        else:
            self._set_alarm(self._since + linger_s)

    @property
    def things(self) -> Sequence[Ended]:
        """What there is."""
        return self._things

    def _is_ripe(self) -> bool:
        return self._is_due or len(self._things) >= self._enough

    def _set_alarm(self, at: float) -> None:
        self._alarm += 1
        self._alarm_at = at
        self._clock.at(at, self._ring, self._alarm)

    def _ring(self, alarm: int) -> None:
        if alarm == self._alarm:
            self._alarm_at = math.inf
            if self._asked:
                self._give()

    def _give(self) -> None:
        """Give a call what there is, but not more than enough, and the rest to the next if that waits."""
        self._alarm += 1
        self._alarm_at = math.inf
        while self._asked:
            things, self._things = self._things[: self._enough], self._things[self._enough :]
            self._is_due = bool(self._things)
            self._asked -= 1
            self._on_fetched(things)
            if not self._things:
                break
        if self._asked:
            self._set_alarm(self._clock.time() + self._beat_s)
