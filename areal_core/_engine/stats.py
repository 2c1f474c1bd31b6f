"""What an engine does and has done, in numbers: `EngineStats`."""

from __future__ import annotations

from dataclasses import dataclass

from areal_core._field_docs import documented


@documented
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
    """Of the weights that this engine gave it, or that the server told one that follows; None: neither."""
    departures: int
    """How often it has left rotation."""
    tokens: int = 0
    """Tokens that came from it, of requests under way too."""
    seconds: float = 0.0
    """How long it has had requests for tokens, those under way too: two for a second each are two."""
    completed: int = 0
    """Requests that it has answered: to the end, or until it was paused or had new weights."""
    failed: int = 0
    """Requests that it refused or broke off, or did not answer within ``request_timeout``."""
    cancelled: int = 0
    """Requests that were ended from here: nobody wanted the rest."""
    streams: bool = True
    """Whether tokens come as they are made; else all of a request's come at its end."""

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second that one request got, on average so far; None: there was none.

        Lately is what differs between two of these: their tokens, by their seconds.
        """
        return self.tokens / self.seconds if self.seconds else None


@documented
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters from ``initialize`` on, and how things stand."""

    running: int = 0
    """Generations under way."""
    ended: int = 0
    failed: int = 0
    """Of those that ended: they raised."""
    cancelled: int = 0
    """Of those that ended: who waited for them cancelled them, as rollouts are that became too old."""
    attempts: int = 0
    """Requests that were sent to servers for those that ended."""
    tokens: int = 0
    """Tokens that came, of those under way too."""
    is_paused: bool = False
    waiting: int = 0
    """Generations that wait for a slot at any server."""
    servers: tuple[ServerStats, ...] = ()
