"""How often workers are heard of: soon, and not more often than the driver can listen to all of them."""

from __future__ import annotations

BEAT_S = 1.0
"""From one sign of life of a worker that has nothing to say to the next, where workers are few."""

LEAST_LINGER_S = 0.01
"""For how long what has ended at a worker waits for more to go with it, where workers are few."""

_PER_LEASE = 6  # a lease is renewed that often, however many workers there are
_EACH_S = 0.004  # what an exchange takes of the driver, Ray's share included, twice: half of it is for others


def linger_s(workers: int, lease_s: float) -> float:
    """Return for how long what has ended at one of *workers* waits for more to go with it."""
    return min(lease_s / _PER_LEASE, max(LEAST_LINGER_S, _EACH_S * workers))


def beat_s(workers: int, lease_s: float) -> float:
    """Return how often one of *workers* that has nothing to say gives a sign of life."""
    return min(lease_s / _PER_LEASE, max(BEAT_S, _EACH_S * workers))


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
