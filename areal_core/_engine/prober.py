"""The task that looks after the servers: brings back those that are out, finds those silent or slow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from areal_core._engine.events import Events
from areal_core._engine.recovery import (
    PROBE_TIMEOUT_S,
    AwaitsWeightsError,
    NotNowError,
    Recovery,
    StaysOutError,
    probe,
)
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.slow_servers import SlowServers
from areal_core._engine.waking import Bell
from areal_core._engine.wire.connection_errors import NOBODY_THERE
from areal_core.config import InferenceEngineConfig
from areal_core.errors import InferenceError, ServerUnreachableError

_LOOK_EVERY_S = 0.5  # so often those that are out are tried
_PROBE_EVERY_S = 5.0  # so often those that are in, and those that are well and stay out
_PROBES_PER_SILENCE = 4


class Prober:
    """Looks after each server in a task of its own, so that none waits for another.

    When *bell* rings it looks at all of them at once.
    """

    def __init__(
        self, config: InferenceEngineConfig, router: Router, recovery: Recovery, events: Events, bell: Bell
    ) -> None:
        self._silence_s = config.silence_timeout
        self._router = router
        self._recovery = recovery
        self._events = events
        self._bell = bell
        self._watching: dict[Server, asyncio.Task[None]] = {}
        self._returning: dict[Server, asyncio.Task[None]] = {}
        self._slow = SlowServers(events)

    async def run(self) -> None:
        """Look after the servers until cancelled."""
        try:
            while True:
                ring = self._bell.last_ring
                self._assign()
                due = time.monotonic() + _LOOK_EVERY_S
                await self._bell.sleep(_LOOK_EVERY_S, ring)
                self._find_slow(due)
                self._router.serve()
        except (asyncio.CancelledError, Exception):  # no GeneratorExit: its loop is gone then, and its tasks
            tasks = [*self._watching.values(), *self._returning.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _assign(self) -> None:
        """See that there is one task per server: one to watch it, or one to bring it back."""
        servers = self._router.servers
        out = {server for server in servers if server.why_out is not None}
        _keep(self._watching, set(servers) - out, partial(self._see_to, self._watch))
        _keep(self._returning, out, partial(self._see_to, self._bring_in))

    def _find_slow(self, due: float) -> None:
        """Tell of servers that are slow. That was to be done at *due*, and shows how late the loop is."""
        now = time.monotonic()
        if self._slow.is_due(now, now - due):
            self._slow.note(now, [(one, self._router.stats_of(one)) for one in self._router.servers])

    async def _see_to(self, act: Callable[[Server], Awaitable[None]], server: Server) -> None:
        try:
            await act(server)
        except Exception as error:  # of a backend that is not ours
            self._events.prober_failed(server.name, error)
            await asyncio.sleep(_PROBE_EVERY_S)

    async def _bring_in(self, server: Server) -> None:
        try:
            await self._recovery.bring_in(server)
            server.complaint = None
        except StaysOutError as error:
            self._router.explain(server, str(error))
            if server.complaint != str(error):
                server.complaint = str(error)
                self._events.server_stays_out(server.name, str(error))
            if not isinstance(error, AwaitsWeightsError):
                await asyncio.sleep(_PROBE_EVERY_S)  # to load weights takes a server's time
        except NotNowError as error:
            self._router.explain(server, str(error))
        except InferenceError as error:
            self._router.explain(server, str(error))
            if isinstance(error, ServerUnreachableError) and not error.is_shortage:
                self._router.cut(server, str(error))  # what it is silent about goes on elsewhere

    async def _watch(self, server: Server) -> None:
        """Take a server out of rotation when it has not been well for too long."""
        well_at = time.monotonic()
        every_s = min(_PROBE_EVERY_S, self._silence_s / _PROBES_PER_SILENCE)
        ring = self._bell.last_ring
        while server.why_out is None:
            await self._bell.sleep(every_s, ring)
            ring = self._bell.last_ring
            why = await _ask(server, min(PROBE_TIMEOUT_S, self._silence_s))
            if why is None:
                well_at = time.monotonic()
                await self._see_whether_lost(server)
            elif time.monotonic() - well_at >= self._silence_s or _is_gone(why):
                self._router.take_out(server, f"not well: {why}")
                self._router.cut(server, str(why))

    async def _see_whether_lost(self, server: Server) -> None:
        with contextlib.suppress(InferenceError):  # the next probe tells
            why = await self._recovery.why_lost(server)
            if why is not None:
                self._router.take_out(server, why)
                self._router.cut(server, why)


def _keep(
    tasks: dict[Server, asyncio.Task[None]],
    servers: set[Server],
    act: Callable[[Server], Coroutine[Any, Any, None]],
) -> None:
    """Have one task in *tasks* for each of *servers*, and none for others."""
    for server in tasks.keys() - servers:
        tasks.pop(server).cancel()
    for server in servers:
        if server not in tasks or tasks[server].done():
            tasks[server] = asyncio.create_task(act(server))


async def _ask(server: Server, timeout_s: float) -> InferenceError | None:
    try:
        await probe(server, timeout_s)
    except InferenceError as error:
        return error
    return None


def _is_gone(error: InferenceError) -> bool:
    """Return whether nobody listens there. A shortage of our own, or of names, is no more than silence."""
    return isinstance(error, ServerUnreachableError) and error.errno in NOBODY_THERE
