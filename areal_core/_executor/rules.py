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
    stall_timeout_s: float = 60.0
    max_failures: int = 32
    """How many training rollouts in a row may fail."""
    max_unaccepted: int = 64
    """How many in a row may end without being accepted."""

    @property
    def most_units(self) -> int:
        """How many units may be under way at one version."""
        return (self.max_staleness + 1) * self.batch
