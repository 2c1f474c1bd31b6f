"""The settings that decide what starts, what is kept, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnStale = Literal["mask", "drop", "requeue", "keep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one executor; what they mean is written at the fields of `InferenceEngineConfig`."""

    batch: int
    max_staleness: int
    most_samples: int | None
    most_started: int
    """How many samples may be with the port at once, those of evaluation too."""
    on_stale: OnStale = "mask"
    straggler_wait_s: float = 0.0
    max_requeues: int = 1
    max_losses: int = 3
    """How often one rollout may be lost with its worker, and run again."""
    stall_timeout_s: float = 60.0
    max_failures: int = 32
    """How many training rollouts in a row may fail."""
    max_unaccepted: int = 64
    """How many in a row may end without being accepted."""

    @property
    def most_units(self) -> int:
        """How many units may be under way at one version."""
        return (self.max_staleness + 1) * self.batch

    def pending_for(self, count: int, group_size: int) -> int:
        """Return how many rollouts are to be kept pending for batches of *count*."""
        # Nobody feeds between two calls, and a call feeds when half of it or less is left. So after a call
        # more than a batch is pending, and twice what runs at once: slots run dry only after the next batch.
        # As many as all units would be pulled far ahead of their use where few may run at once.
        at_once = self.most_units if self.most_samples is None else -(-self.most_samples // group_size)
        return max(count, min(self.most_units, 2 * count + 4 * at_once))
