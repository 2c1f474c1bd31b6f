"""The clients that agents are given. They live on the loop, send through its pool, and close with it.

An agent may close what it was given, as it would its own: that does nothing, since others use it too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httpx

from areal_core import workflow_context
from areal_core._agents.listening_transport import ListeningTransport
from areal_core._agents.local_transport import BASE_URL, LocalTransport
from areal_core._http import clients
from areal_core._http.transport import SessionTransport, client_on
from areal_core.loop_cleanup import register_loop_cleanup

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ATTRIBUTE = "_areal_core_agent_clients"
_NO_KEY = "none"  # without one the SDK looks into the environment, and fails


class Wanted(NamedTuple):
    """What a client is for."""

    base_url: str | None
    """None: the engine of whichever episode sends."""
    api_key: str | None
    record: bool


class SharedClient(httpx.AsyncClient):
    """An httpx client that nobody who got it can close."""

    async def aclose(self) -> None:
        """Do nothing: the loop's end does it."""

    async def close_for_good(self) -> None:
        """Close it."""
        await super().aclose()


class AgentClients:
    """Those of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: httpx.Timeout) -> None:
        self._loop = loop
        self._timeout = timeout
        self._opened: list[SharedClient] = []
        self._sdks: dict[Wanted, AsyncOpenAI] = {}
        self._plain: SharedClient | None = None

    @property
    def plain(self) -> SharedClient:
        """An httpx client for an agent's own requests."""
        if self._plain is None:
            self._plain = self._open(SessionTransport(clients.aiohttp_session))
        return self._plain

    def sdk(self, wanted: Wanted) -> AsyncOpenAI:
        """Return the SDK's client for that."""
        if wanted not in self._sdks:
            self._sdks[wanted] = self._make(wanted)
        return self._sdks[wanted]

    async def close(self) -> None:
        """Close all of them. Who comes after this gets new ones."""
        delattr(self._loop, _ATTRIBUTE)
        for client in self._opened:
            await client.close_for_good()

    def _make(self, wanted: Wanted) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        transport: httpx.AsyncBaseTransport = LocalTransport()
        if wanted.base_url is not None:
            transport = SessionTransport(clients.aiohttp_session)
            if wanted.record:
                transport = ListeningTransport(transport)
        return AsyncOpenAI(
            base_url=wanted.base_url or BASE_URL,
            api_key=wanted.api_key or _NO_KEY,
            max_retries=0,  # a generation that took too long would be sent again, and again
            http_client=self._open(transport),  # type: ignore[arg-type]  # httpx, which it takes beside its own
        )

    def _open(self, transport: httpx.AsyncBaseTransport) -> SharedClient:
        client = client_on(transport, self._timeout, SharedClient)
        self._opened.append(client)
        return client


async def agent_clients() -> AgentClients:
    """Return those of the running loop. Raises like `workflow_context.get_httpx_client`."""
    timeout = (await workflow_context.get_httpx_client()).timeout
    loop = asyncio.get_running_loop()
    found: AgentClients | None = getattr(loop, _ATTRIBUTE, None)
    if found is None:
        found = AgentClients(loop, timeout)
        register_loop_cleanup(found.close)
        setattr(loop, _ATTRIBUTE, found)
    return found
