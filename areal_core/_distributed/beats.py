"""When calls that fetch from a worker return with nothing: a sign of life."""

from __future__ import annotations


class Beats:
    """Has one of two that wait at a time return each *every_s* seconds, and not both of them together."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._latest = 0.0

    def patience_s(self, now: float) -> float:
        """Return for how long a call that is made *now* is to wait for something."""
        if self._latest > now + self._every_s:  # the other waits for longer
            return self._every_s
        self._latest = max(now, self._latest) + self._every_s
        return self._latest - now
