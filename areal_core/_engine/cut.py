"""Calls that are given up with their server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from areal_core._engine.server import Server
from areal_core.errors import ServerUnreachableError


class GivenUpError(ServerUnreachableError):
    """A server was given up by somebody else, in the middle of a call."""


class Cut:
    """A context that ends as soon as *server* is given up. Raises GivenUpError then.

    *when_removed*: only when it is removed, not when it is silent.
    """

    def __init__(self, server: Server, *, when_removed: bool = False) -> None:
        self._server = server
        self._when_removed = when_removed
        self._loop = asyncio.get_running_loop()
        self._clock = asyncio.timeout(None)
        self._why: str | None = None
        self._over = False

    def cut(self, why: str) -> None:
        """End it; any thread may."""
        if self._when_removed and not self._server.removed:
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed, and it is over
            self._loop.call_soon_threadsafe(self._cut, why)

    async def __aenter__(self) -> None:
        await self._clock.__aenter__()
        self._server.calls.add(self)

    async def __aexit__(self, *raised: Any) -> None:
        self._over = True
        self._server.calls.discard(self)
        try:
            await self._clock.__aexit__(*raised)
        except TimeoutError:
            message = f"{self._server.name} was given up: {self._why}"
            raise GivenUpError(message, server=self._server.name, sent=True) from None

    def _cut(self, why: str) -> None:
        if not self._over and self._why is None:
            self._why = why
            self._clock.reschedule(self._loop.time())
