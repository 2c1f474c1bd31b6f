"""What an executor says it found in its journal: `Resumed`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a restart found in the journal."""

    step: int | None
    """The commit it goes on from; None: the beginning."""
    epoch: int
    """Which pass of the dataloader its first one counts as: for a sampler that shuffles by epoch."""
    done: int
    """Items that are given no more: trained on, or ended without being accepted."""
    to_deliver: int
    """Trajectories that were accepted, and are in no checkpoint: they are delivered first, if they are young
    enough, and played again if not."""
    to_play: int
    """Items that were in flight."""
    damaged: int
    """Rows of the file that could not be read as they were written."""
    kept_beside: tuple[Path, ...]
    """Copies of damaged files, as they were."""

    def fields(self) -> dict[str, Any]:
        """Return all of it for a log line."""
        found = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {**found, "kept_beside": [str(path) for path in self.kept_beside]}
