"""What a server writes down about its generations, for tests that judge by the server's own word."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

_MOST_EVENTS = 100_000


class EventLog:
    """Keep the last events, in the order in which they happened."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)

    def write(self, event: str, **fields: Any) -> None:
        """Append an *event*, with the time it has: seconds on the machine's monotonic clock."""
        self._events.append({"event": event, "at": time.monotonic(), **fields})

    def read(self) -> list[dict[str, Any]]:
        """Return the events there are, oldest first."""
        return list(self._events)
