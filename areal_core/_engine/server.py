"""One inference server, as the engine sees it, and who waits for one."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from areal_core._engine.backend import Backend
from areal_core._engine.policy import Moment
from areal_core._engine.standing import Standing
from areal_core._engine.tally import Tally
from areal_core._engine.turn import Turn
from areal_core._engine.waking import wake
from areal_core._engine.wire.exchange import Exchange


class Call(Protocol):
    """One request under way at a server."""

    def cut(self, why: str) -> None:
        """End it from outside; any thread may."""


class Server:
    """An address with what is known of who listens there.

    The router's lock guards `why_out`, `departures`, `removed`, `in_flight`, `tally`, `standing` and `queue`;
    who loads weights has its turn at `loading`, and who pauses it at `telling`; the rest is read and changed
    in single steps.
    """

    def __init__(self, exchange: Exchange, backend: Backend) -> None:
        self.exchange = exchange
        self.name = exchange.address.name
        """Its address, for errors and logs."""
        self.dialect = backend
        """The backend it was made with."""
        self.backend = backend
        """The variant of that which it had when it was last brought in."""
        self.why_out: str | None = "new"
        """Why it is not in rotation; None while it is."""
        self.complaint: str | None = None
        """Why it stays out of rotation though it is well, as the log has told; None: it has not."""
        self.departures = 0
        """How often it has left rotation."""
        self.slow_told_at = -math.inf
        """When the log last told that it is slow, in monotonic seconds."""
        self.removed = False
        self.in_flight = 0
        self.tally = Tally()
        """What it has done."""
        self.standing = Standing()
        """Whether it fails all that it is given."""
        self.calls: set[Call] = set()
        """Under way: generations and what controls them. They end when it is given up."""
        self.sleepers: set[asyncio.Future[None]] = set()
        """Who waits some time before another attempt here, and no longer than it is in rotation."""
        self.queue: deque[Waiter] = deque()
        """Who waits for a slot here, and nowhere else."""
        self.weights: int | None = None
        """The version that this engine gave it, or that it last showed one that follows; None: neither."""
        self.shown: Moment | None = None
        """That with the time when it was shown, to an engine that follows."""
        self.weights_unknown = False
        """Whether an update failed that may have changed them, and nobody can say or undo it."""
        self.awaits_weights = False
        """Whether it is well, and out of rotation for its weights: an update is to include it."""
        self.may_be_paused = False
        """Whether it was told to pause, and has not said since that it goes on."""
        self.telling = Turn()
        """One tells it to pause or to go on at a time: what came last would count, not what was sent last."""
        self.loading = Turn()
        """One loads weights into it at a time: what was loaded last would count, not what was sent last."""
        self.labels_replies = False
        """Whether a reply of its has told the version that made it."""
        self.tells_version = False
        """Whether it has told its version when it was asked."""
        self.proven: weakref.WeakSet[Any] = weakref.WeakSet()
        """Connections to a process that is known to have `weights`; a restarted one has others."""
        self.unaborted: set[str] = set()
        """Wire ids of attempts that may still run there: it could not be reached to abort them."""
        self.aborting: set[asyncio.Task[None]] = set()
        """Aborts under way; asyncio alone would not keep them."""

    def count(self, more: int) -> None:
        """Count *more* in flight, or fewer."""
        self.tally.add_time(self.in_flight)
        self.in_flight += more

    def __repr__(self) -> str:
        return f"<Server {self.name}, {self.why_out or 'in rotation'}, {self.in_flight} in flight>"


@dataclass(slots=True, eq=False)
class Pin:
    """Where a conversation is at home. *server* is None before its first request."""

    server: Server | None = None
    in_flight: int = 0


class Waiter:
    """One generation that waits for a server, on its own loop."""

    __slots__ = ("_arrival", "gone", "pin", "server", "ticket")

    def __init__(self, pin: Pin, ticket: int) -> None:
        self.pin = pin
        self.ticket = ticket
        self.server: Server | None = None
        self.gone = False
        self._arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> bool:
        """Let it go on; any thread may. Return whether its loop is there."""
        return wake(self._arrival)

    async def arrive(self, timeout_s: float) -> None:
        """Wait until it is woken, *timeout_s* seconds at most."""
        await asyncio.wait((self._arrival,), timeout=timeout_s)
