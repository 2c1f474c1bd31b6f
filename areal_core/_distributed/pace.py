"""How much and how often workers are heard of: soon, and not more than the driver can listen to them all."""

from __future__ import annotations

from typing import NamedTuple

AHEAD_PER_SLOT = 4
"""How many more episodes a worker may hold for each of its slots, at most."""

LEAST_LINGER_S = 0.03
LEAST_BEAT_S = 1.0

_MOST_AT_ONCE = 512
_EACH_S = 0.004  # what an exchange takes of the driver, Ray's share included, twice: half of it is for others


class Pace(NamedTuple):
    """What a call that fetches from a worker is told."""

    linger_s: float
    """For how long what has ended waits for more to go with it."""
    beat_s: float
    """When it is to return with nothing, as a sign of life."""


def pace_of(workers: int, lease_s: float) -> Pace:
    """Return how often each of *workers* is heard of: several times in a lease, however many they are.

    A sign of life takes the driver as long as anything else, so there are fewer of them than of the rest.
    """
    linger_s = max(LEAST_LINGER_S, _EACH_S * workers)
    return Pace(min(lease_s / 8, linger_s), min(lease_s / 5, max(LEAST_BEAT_S, 2 * linger_s)))


def enough(slots: int) -> int:
    """Return how many ends go at once: a worker that waits for more would have nothing left to begin."""
    return min(_MOST_AT_ONCE, AHEAD_PER_SLOT * slots)


class Beats:
    """Has one of two calls that wait at a worker return each beat, and not both of them together."""

    def __init__(self) -> None:
        self._latest = 0.0

    def patience_s(self, now: float, beat_s: float) -> float:
        """Return for how long a call that is made *now* is to wait for something."""
        if self._latest > now + beat_s:  # the other waits for longer
            return beat_s
        self._latest = max(now, self._latest) + beat_s
        return self._latest - now
