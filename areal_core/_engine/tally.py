"""What one server has done for this engine: requests, tokens, and how long they took."""

from __future__ import annotations

import time
from typing import Literal

Ending = Literal["completed", "failed", "cancelled"]


class Visit:
    """One request for tokens at a server. One loop alone changes it, until it is over."""

    __slots__ = ("ending", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        """That have come."""
        self.ending: Ending | None = "cancelled"  # unless it ends in another way
        """How it ended; None: the server has not heard of it."""


class Tally:
    """Counts the requests of one server. The router's lock guards it.

    What comes of a request under way is counted by its `Visit`, without the lock: there are thousands of
    pieces a second. The sum never falls, since a visit becomes part of it under the lock.
    """

    def __init__(self) -> None:
        self._visits: set[Visit] = set()
        self._tokens = 0
        self._seconds = 0.0
        self._added_at = time.monotonic()
        self.endings: dict[Ending, int] = {"completed": 0, "failed": 0, "cancelled": 0}
        """How many requests are over, by how."""
        self.streams = True
        """Whether tokens come as they are made; else all at the end of a request."""

    def begin(self, visit: Visit) -> None:
        """Count what *visit* brings from now on; the lock is not needed."""
        self._visits.add(visit)

    def end(self, visit: Visit) -> None:
        """Count *visit*, which is over."""
        self._visits.discard(visit)
        self._tokens += visit.tokens
        if visit.ending is not None:
            self.endings[visit.ending] += 1

    def add_time(self, in_flight: int) -> None:
        """Add up the time from the last call until now, in which there were *in_flight* requests."""
        now = time.monotonic()
        self._seconds += in_flight * (now - self._added_at)
        self._added_at = now

    @property
    def tokens(self) -> int:
        """How many tokens have come, of requests under way too."""
        return self._tokens + sum(visit.tokens for visit in tuple(self._visits))

    @property
    def seconds(self) -> float:
        """How long requests took, one after the other, as far as `add_time` knows."""
        return self._seconds
