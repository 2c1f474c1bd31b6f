"""How many rollouts may start: AReaL's arithmetic, under its names.

The capacity is the smaller of two: the samples that may still run at once, and the trajectories that may
still be produced before the data of a version would be too old,
``(max_staleness + version + 1) * consumer_batch_size - (accepted + running)`` (AReaL, arXiv:2505.24298,
equation 3). It counts what it is told of and knows nothing else. `WorkflowExecutor` reports to one, and
keeps a stricter account of its own: this formula alone bounds staleness only while nothing is rejected.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from areal_core._checks import check_integer

__all__ = ["RolloutStat", "StalenessManager", "VersionProvider"]


class VersionProvider(Protocol):
    """Whoever knows the policy version; `RemoteInfEngine` is one."""

    def get_version(self) -> int:
        """Return the policy version."""


@dataclass(frozen=True)
class RolloutStat:
    """How many rollouts are where."""

    enqueued: int = 0
    """Submitted, and not started."""
    running: int = 0
    accepted: int = 0
    """Accepted so far."""
    rejected: int = 0
    """Ended in any other way so far."""


class StalenessManager:
    """Counts rollouts and says how many may start. Any thread may call it.

    *max_concurrent_rollouts* bounds the rollouts that run (None: no bound), *consumer_batch_size* is how
    many the trainer takes per version, *max_staleness* how many versions old they may be then.
    Raises TypeError and ValueError for what is no count.
    """

    def __init__(
        self,
        version_provider: VersionProvider,
        max_concurrent_rollouts: int | None,
        consumer_batch_size: int,
        max_staleness: int,
    ) -> None:
        if not callable(getattr(version_provider, "get_version", None)):
            raise TypeError(f"version_provider={version_provider!r} has no get_version()")
        if max_concurrent_rollouts is not None:
            check_integer("max_concurrent_rollouts", max_concurrent_rollouts, least=1)
        check_integer("consumer_batch_size", consumer_batch_size, least=1)
        check_integer("max_staleness", max_staleness, least=0)
        self.version_provider = version_provider
        self.max_concurrent_rollouts = max_concurrent_rollouts
        self.consumer_batch_size = consumer_batch_size
        self.max_staleness = max_staleness
        # For those who count, not to look: a signal handler in the middle of that may wait for one of them.
        # Re-entrant: the garbage collector may run a __del__ that calls back in.
        self._lock = threading.RLock()
        self._counts = (0, 0, 0, 0)

    def get_capacity(self) -> int:
        """Return how many rollouts may start now; negative when there are too many already."""
        version = self.version_provider.get_version()  # not under the lock: it may take its time
        stat = self.get_stats()
        budget = (self.max_staleness + version + 1) * self.consumer_batch_size - (
            stat.accepted + stat.running
        )
        if self.max_concurrent_rollouts is None:
            return budget
        return min(self.max_concurrent_rollouts - stat.running, budget)

    def get_pending_limit(self) -> int:
        """Return how many rollouts are worth keeping pending: as many as could ever start at one version."""
        return (self.max_staleness + 1) * self.consumer_batch_size

    def get_stats(self) -> RolloutStat:
        """Return the counts now."""
        return RolloutStat(*self._counts)

    def on_rollout_enqueued(self) -> None:
        """Count one more that waits."""
        self._count(1, 0, 0, 0)

    def on_rollout_submitted(self) -> None:
        """Count one that waited as running."""
        self._count(-1, 1, 0, 0)

    def on_rollout_accepted(self) -> None:
        """Count one that ran as accepted."""
        self._count(0, -1, 1, 0)

    def on_rollout_rejected(self) -> None:
        """Count one that ran as rejected, however it ended."""
        self._count(0, -1, 0, 1)

    def on_rollout_released(self) -> None:
        """Take back one that was accepted: it was not used."""
        self._count(0, 0, -1, 0)

    def on_version_recovered(self, version: int) -> None:
        """Go on from a checkpoint of *version*: as many count as accepted as it was trained on."""
        accepted = check_integer("version", version, least=0) * self.consumer_batch_size
        with self._lock:
            self._count(0, 0, accepted - self._counts[2], 0)

    def _count(self, enqueued: int, running: int, accepted: int, rejected: int) -> None:
        with self._lock:
            while True:
                counts = self._counts
                changed = (
                    counts[0] + enqueued,
                    counts[1] + running,
                    counts[2] + accepted,
                    counts[3] + rejected,
                )
                if self._counts is counts:  # no __del__ has counted in the middle of this
                    self._counts = changed
                    return
