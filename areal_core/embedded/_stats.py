"""What an embedded server counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class ServerStats:
    """The counters of one server since it started.

    ``generations == completed + aborted + cancelled + in_flight``.
    """

    connections: int = 0
    """Connections accepted, the one that asked included."""
    requests: int = 0
    """HTTP requests of any kind, the one that asked included."""
    generations: int = 0
    """Generations asked for; a batch counts each of its prompts."""
    completed: int = 0
    """Generations that reached their end."""
    aborted: int = 0
    """Generations that somebody aborted."""
    cancelled: int = 0
    """Generations whose client went away before."""
    in_flight: int = 0
    """Generations that have not ended, those that wait included."""
    waiting: int = 0
    """Generations that wait now, for a slot or for the end of a pause."""
    peak: int = 0
    """The most that ever were in flight at once."""
    paused: bool = False
    """Whether generation is paused: what comes now waits. Who waits for a pause asks for 1."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each fault struck, by its name; those that were turned on and never struck are there too."""


COUNTERS = tuple(spec.name for spec in fields(ServerStats) if spec.name != "faults")


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
        self._tell(replace(now, **counted))

    def set_paused(self, paused: bool) -> None:
        """Say whether generation is paused from now on."""
        self._tell(replace(self.stats, paused=paused))

    def know_faults(self, names: Iterable[str]) -> None:
        """Have each of *names* among the faults from now on, with 0 at first."""
        self._tell(replace(self.stats, faults={**dict.fromkeys(names, 0), **self.stats.faults}))

    def add_fault(self, name: str) -> None:
        """Add 1 to the fault *name*."""
        self._tell(replace(self.stats, faults={**self.stats.faults, name: self._count(name) + 1}))

    def _tell(self, stats: ServerStats) -> None:
        self.stats = stats
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
        return all(self._count(name) >= value for name, value in wanted.items())

    def _count(self, name: str) -> int:
        return int(getattr(self.stats, name)) if name in COUNTERS else self.stats.faults.get(name, 0)
