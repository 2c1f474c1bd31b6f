"""What an engine does and has done, in numbers: `EngineStats`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from areal_core._engine.generation import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """One inference server, as the engine sees it."""

    name: str
    """Its address."""
    why_out: str | None
    """Why it is out of rotation; None: it is in."""
    in_flight: int
    waiting: int
    """Generations that wait for a slot at this one."""
    version: int | None
    """Of the weights that this engine gave it; None: it has what it started with."""
    departures: int
    """How often it has left rotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters from ``initialize`` on, and how things stand."""

    running: int = 0
    """Generations under way."""
    ended: int = 0
    failed: int = 0
    """Of those that ended: they raised, or were cancelled."""
    attempts: int = 0
    """Requests that were sent to servers for those that ended."""
    tokens: int = 0
    """Tokens that came, of those under way too."""
    is_paused: bool = False
    waiting: int = 0
    """Generations that wait for a slot at any server."""
    servers: tuple[ServerStats, ...] = ()


class Done:
    """Counts generations that have ended, on any loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end one in here
        self.ended = 0
        self.failed = 0
        self.attempts = 0
        self.tokens = 0

    def count(self, generation: Generation) -> None:
        """Count one, whatever came of it."""
        with self._lock:
            self.ended += 1
            self.failed += not generation.is_complete
            self.attempts += generation.attempts
            self.tokens += generation.tokens_so_far
