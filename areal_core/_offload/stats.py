"""What the workers of one loop do and have done, in numbers: `OffloadStats`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

_WORKERS = {"thread": ("worker thread", "worker threads"), "process": ("worker process", "worker processes")}
_FULL = 0.9  # of all processors
_COMPUTES = 0.5  # processors that the threads of one interpreter take together, who want one at a time


def processors() -> int:
    """Return how many processors this process may use."""
    count: int | None
    if hasattr(os, "process_cpu_count"):  # since 3.13
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    return count or 1


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
    took_s: float = 0.0
    """How long those took that have ended, together."""
    computed_s: float = 0.0
    """For how much of that they had a processor; in processes nobody measures it."""
    processors: int | None = None
    """How many this process may use; None: nobody says."""

    def is_short(self) -> bool:
        """Whether there are fewer workers than calls."""
        return self.waiting > 0

    @property
    def taken(self) -> float | None:
        """How many processors the calls that are made take; None: none has ended, or nobody measures it.

        Of those in processes, which are for what computes, each is taken to have one.
        """
        if self.place == "process":
            return float(self.busy)
        return self.busy * self.computed_s / self.took_s if self.took_s > 0 else None

    def advice(self) -> str:
        """Say what lets more calls be made at once, or that there is nothing."""
        most, taken = self.processors or 1, self.taken
        if self.place == "process":
            return self._process_advice()
        if taken is None or taken < _COMPUTES:
            return "configure_offload(max_threads=...) allows more"
        if self.processors is None or (most > 1 and taken < _FULL * most):
            return f"they compute, and more threads would not help: to='process' {_each(self.processors)}"
        return f"{_all(most)}: only calls that compute less make it faster"

    def _process_advice(self) -> str:
        if self.processors is None:
            return "configure_offload(max_processes=...) allows more, up to the processors there are"
        if self.workers < self.processors:
            return f"configure_offload(max_processes={self.processors}) has one for each processor"
        return f"{_all(self.processors)}; what only waits goes to='thread'"

    def __str__(self) -> str:
        kind = _WORKERS[self.place][self.workers != 1]
        busy = f"{self.busy} of {self.workers} {kind} busy with offloaded functions"
        if not self.waiting:
            return busy
        calls = "1 call waits" if self.waiting == 1 else f"{self.waiting} calls wait"
        return f"{busy}; {calls} for one, the first for {self.longest_wait_s:.1f} s; {self.advice()}"


def _each(most: int | None) -> str:
    return "gives each a processor" if most is None else f"lets {most} compute at once"


def _all(most: int) -> str:
    return "the only processor is taken" if most == 1 else f"all {most} processors are taken"
