"""What an episode is doing: read by logs, views and explanations, written where it happens."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

PLAYING = "playing its workflow"
"""The stage between all others."""

PAUSED = "waiting for generation to be continued"
"""The stage of a generation that may not be sent."""


@dataclass(slots=True, eq=False)
class EpisodeRecord:
    """The record of one episode. Any thread may read it."""

    data_id: Any = None
    """What names its item of data; None: nothing does."""
    stage: str = "starting"
    """What it does, or waits for, in words."""
    server: str | None = None
    """The server that generates for it; None: none does."""
    since: float = field(default_factory=time.monotonic)
    """When its stage began, in monotonic seconds."""
    segments: int = 0
    """How many requests for tokens it has sent."""
    newest_version: int | None = None
    """The policy version when it sent the last of them; None: it has sent none."""

    def __str__(self) -> str:
        seconds = time.monotonic() - self.since
        return f"{self.stage} for {seconds:.1f} s, {self.segments} requests for tokens sent"

    def enter(self, stage: str, server: str | None = None) -> None:
        """Begin a stage."""
        self.stage, self.server, self.since = stage, server, time.monotonic()

    def segment_sent(self, version: int) -> None:
        """Note a request for tokens, sent at policy *version*."""
        self.segments += 1
        self.newest_version = version


current: ContextVar[EpisodeRecord | None] = ContextVar("areal_core.episode_record", default=None)
"""The record of the episode that runs; None outside of episodes."""
