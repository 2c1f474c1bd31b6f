"""What the workers of one loop do and have done, in numbers: `OffloadStats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_WORKERS = {"thread": ("worker thread", "worker threads"), "process": ("worker process", "worker processes")}
_SETTINGS = {"thread": "max_threads", "process": "max_processes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadStats:
    """The calls of offloaded functions in one place, on the loop of one executor."""

    place: Literal["thread", "process"]
    workers: int
    """How many calls are made at once, at most."""
    busy: int = 0
    """Calls that are made now. What was abandoned, and still runs, is no such call."""
    waiting: int = 0
    """Calls that wait for one of those to end."""
    longest_wait_s: float = 0.0
    """For how long the first of them has waited."""
    calls: int = 0
    """Calls that have begun."""
    waited_s: float = 0.0
    """How long these waited before they began, together."""

    def is_short(self) -> bool:
        """Whether there are fewer workers than calls."""
        return self.waiting > 0

    def __str__(self) -> str:
        kind = _WORKERS[self.place][self.workers != 1]
        busy = f"{self.busy} of {self.workers} {kind} busy with offloaded functions"
        if not self.waiting:
            return busy
        calls = "1 call waits" if self.waiting == 1 else f"{self.waiting} calls wait"
        return (
            f"{busy}; {calls} for one, the first for {self.longest_wait_s:.1f} s; "
            f"configure_offload({_SETTINGS[self.place]}=...) allows more"
        )
