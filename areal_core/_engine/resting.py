"""Between two attempts of a generation: where it goes next, how long it leaves that alone, and its sleep."""

from __future__ import annotations

import asyncio
import random
import time

from areal_core._engine.retries import did_not_begin
from areal_core._engine.router import Router
from areal_core._engine.server import Pin, Server
from areal_core.errors import ServerStatusError, ServerUnreachableError


class Resting:
    """What one generation knows of servers that failed it, or asked to be left alone.

    *stays*: it is of a conversation that the caller named, and waits for its server.
    """

    def __init__(self, router: Router, pin: Pin, stays: bool) -> None:
        self._router = router
        self._pin = pin
        self._stays = stays
        self._until: dict[Server, float] = {}  # of those that failed it, by time.monotonic
        self._waits_for: Server | None = None

    def asked_s(self, error: BaseException | None) -> float:
        """Return for how many seconds to leave alone where the next attempt is made, after *error*.

        A generation that need not stay goes to another server, and waits only if all have asked for it.
        """
        server = self._pin.server
        self._waits_for = server if isinstance(error, ServerStatusError | ServerUnreachableError) else None
        asked_s = (isinstance(error, ServerStatusError) and error.retry_after_s) or 0.0
        if server is None or self._stays:
            return asked_s
        now = time.monotonic()
        self._until[server] = now + asked_s
        soonest = min(self._router.in_rotation or (server,), key=self._free_at)
        wait_s = max(0.0, self._free_at(soonest) - now)
        self._pin.server = soonest if wait_s else None
        if isinstance(error, ServerStatusError) and (asked_s or did_not_begin(error)):
            self._waits_for = self._pin.server
        return wait_s

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than the server is in rotation that it is for."""
        server = self._waits_for
        if server is None:
            await asyncio.sleep(seconds)
            return
        left = asyncio.get_running_loop().create_future()
        server.sleepers.add(left)
        try:
            if server.why_out is None:
                await asyncio.wait((left,), timeout=seconds)
        finally:
            server.sleepers.discard(left)

    def choose(self) -> None:
        """Choose the next server, if one has failed it: one that has not, or not for the longest time."""
        if not self._until or self._pin.server is not None:
            return
        now = time.monotonic()

        def order(server: Server) -> tuple[bool, bool, float, int, float]:
            free_at = self._free_at(server)
            return free_at > now, server.standing.is_doubtful, free_at, server.in_flight, random.random()

        self._pin.server = min(self._router.in_rotation, key=order, default=None)

    def _free_at(self, server: Server) -> float:
        return self._until.get(server, 0.0)
