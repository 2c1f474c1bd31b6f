"""What an embedded server counts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ServerStats:
    """The counters of one server since it started; ``generations == completed + cancelled + in_flight``."""

    connections: int = 0
    """Connections accepted, the one that asked included."""
    requests: int = 0
    """HTTP requests of any kind, the one that asked included."""
    generations: int = 0
    """Generations started; a batch counts each of its prompts."""
    completed: int = 0
    """Generations that reached their end."""
    cancelled: int = 0
    """Generations whose client went away before."""
    in_flight: int = 0
    """Generations running now."""
    peak: int = 0
    """The most that ever ran at once."""


class Counters:
    """Keep a server's counters, and tell who waits for them."""

    def __init__(self) -> None:
        self.stats = ServerStats()
        self._waiters: list[tuple[Mapping[str, int], asyncio.Future[None]]] = []

    def add(self, **steps: int) -> None:
        """Add *steps* to the counters they name, all at once."""
        now = self.stats
        counted = {name: getattr(now, name) + step for name, step in steps.items()}
        counted["peak"] = max(now.peak, counted.get("in_flight", 0))
        self.stats = replace(now, **counted)
        for wanted, reached in self._waiters:
            if self._have(wanted) and not reached.done():
                reached.set_result(None)

    async def reach(self, wanted: Mapping[str, int]) -> ServerStats:
        """Wait until every counter in *wanted* has reached its value; return all of them then."""
        if self._have(wanted):
            return self.stats
        waiter = (wanted, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)
        return self.stats

    def _have(self, wanted: Mapping[str, int]) -> bool:
        return all(getattr(self.stats, name) >= value for name, value in wanted.items())
