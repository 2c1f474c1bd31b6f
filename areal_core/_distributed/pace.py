"""How often workers are heard of: soon, and not more often than the driver can listen to all of them."""

from __future__ import annotations

BEAT_S = 1.0
"""From one sign of life of a worker that has nothing to say to the next, where workers are few."""

_LEAST_LINGER_S = 0.01
_MOST_LINGER_S = 5.0  # a lease is renewed in time, several times over
_EACH_S = 0.004  # what an exchange takes of the driver, Ray's share included, twice: half of it is for others


def linger_s(workers: int) -> float:
    """Return for how long what has ended at one of *workers* waits for more to go with it."""
    return min(_MOST_LINGER_S, max(_LEAST_LINGER_S, _EACH_S * workers))


def beat_s(workers: int) -> float:
    """Return how often one of *workers* that has nothing to say gives a sign of life."""
    return max(BEAT_S, linger_s(workers))


class Beats:
    """Has one of two calls that wait at a worker return each *every_s* seconds, and not both together."""

    def __init__(self) -> None:
        self._latest = 0.0

    def patience_s(self, now: float, every_s: float) -> float:
        """Return for how long a call that is made *now* is to wait for something."""
        if self._latest > now + every_s:  # the other waits for longer
            return every_s
        self._latest = max(now, self._latest) + every_s
        return self._latest - now
