"""What an episode is doing: read by logs, views and explanations, written where it happens."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Protocol

from msgspec import Struct, field

PLAYING = "playing its workflow"
"""The stage between all others."""

PAUSED = "waiting for generation to be continued"
"""The stage of a generation that may not be sent."""

REWARDED = "waiting for its reward"
"""The stage of one whose reward function runs, in a ready workflow."""

JUDGED = "waiting for should_accept_fn"
"""The stage of one whose filter runs."""

OFFLOADED = "in an offloaded function"
"""The stage of one whose workflow has any other function called in a thread or in a process."""

WAITING_FOR_WORKER = "waiting for a worker "
"""How the stage of one begins whose function is not called before another ends; the place comes behind."""

WAITING_FOR_ROOM = "waiting for room at a worker"
"""The stage of one that is to be played in another process, and that none has room for."""

FAR = "with its worker"
"""The stage of one that was sent to another process, until that says more."""

ENDED = "ended"
"""The last stage: nothing of it runs any more, or matters."""

GENERATING = "generating"
BACKING_OFF = "backing off"
OTHER = "other"

_SHORT_NAMES = {
    "starting": "starting",
    PLAYING: "playing",
    PAUSED: "generation_paused",
    "waiting for a server": "waiting_for_server",
    f"{WAITING_FOR_WORKER}thread": "waiting_for_worker",
    f"{WAITING_FOR_WORKER}process": "waiting_for_worker",
    OFFLOADED: "offloaded",
    REWARDED: "reward",
    JUDGED: "accept",
    "joining its group": "join",
    "packing its trajectory for the journal": "pack",
    "waiting for slots for the rest of its group": "waiting_for_slots",
    WAITING_FOR_ROOM: "waiting_for_room",
    FAR: "with_worker",
    GENERATING: GENERATING,
    ENDED: ENDED,
}

STAGES = (*dict.fromkeys(_SHORT_NAMES.values()), BACKING_OFF.replace(" ", "_"), OTHER)
"""What `short_name` gives."""


def short_name(stage: str, server: str | None = None) -> str:
    """Return one of few words for a stage, where those of figures and spans have to be few."""
    if server is not None:
        return GENERATING
    name = _SHORT_NAMES.get(stage)
    if name is None:
        return BACKING_OFF.replace(" ", "_") if stage.endswith(BACKING_OFF) else OTHER
    return name


class Trace(Protocol):
    """Follows one episode. It is told in the task that does what it is told of, and never raises."""

    def entered(self, stage: str, server: str | None) -> None:
        """Note that a stage has begun."""

    def segment_sent(self, version: int) -> None:
        """Note a request for tokens, sent at policy *version*."""

    def segment_came(self, tokens: int) -> None:
        """Note that it has ended, and how many it brought."""


class EpisodeRecord(Struct, eq=False):
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
    """The newest policy version at which it sent one; None: it has sent none."""
    generate_s: float = 0.0
    """How long it had requests for tokens under way: several at once count once."""
    reward_s: float = 0.0
    """How long its reward was computed."""
    accept_s: float = 0.0
    """How long its filter ran."""
    requests: int = 0
    """How many requests for tokens it has under way."""
    asked_at: float = 0.0
    """When the first of them was sent."""
    worker: int | None = None
    """The worker that plays it, in a process of its own; None: this process does."""
    trace: Trace | None = None
    """Told of all that happens to it; None: nobody traces."""

    def __str__(self) -> str:
        seconds = time.monotonic() - self.since
        return f"{self.stage} for {seconds:.1f} s, {self.segments} requests for tokens sent"

    def enter(self, stage: str, server: str | None = None) -> None:
        """Begin a stage."""
        now, was = time.monotonic(), self.stage
        if was == REWARDED:
            self.reward_s += now - self.since
        elif was == JUDGED:
            self.accept_s += now - self.since
        self.stage, self.server, self.since = stage, server, now
        if self.trace is not None:
            self.trace.entered(stage, server)

    def segment_sent(self, version: int) -> None:
        """Note a request for tokens, sent at policy *version*."""
        self.segments += 1
        self.newest_version = version if self.newest_version is None else max(version, self.newest_version)
        if not self.requests:
            self.asked_at = time.monotonic()
        self.requests += 1
        if self.trace is not None:
            self.trace.segment_sent(version)

    def segment_came(self, tokens: int) -> None:
        """Note that the request for tokens that this task sent last brought so many."""
        if self.requests:  # else it failed before it was sent
            self.requests -= 1
            if not self.requests:
                self.generate_s += time.monotonic() - self.asked_at
        if self.trace is not None:
            self.trace.segment_came(tokens)


current: ContextVar[EpisodeRecord | None] = ContextVar("areal_core.episode_record", default=None)
"""The record of the episode that runs; None outside of episodes."""
