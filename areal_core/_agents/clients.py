"""The clients that agents are given. They live on the loop, send through its pool, and close with it.

An agent may close what it was given, as it would its own: that does nothing, since others use it too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import httpx

from areal_core._agents.listening_transport import ListeningTransport
from areal_core._agents.local_transport import BASE_URL, LocalTransport
from areal_core._http import clients
from areal_core._http.transport import NoCookies, SessionTransport, client_on
from areal_core.loop_cleanup import register_loop_cleanup

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ATTRIBUTE = "_areal_core_agent_clients"
_NO_KEY = "none"  # without one the SDK looks into the environment, and fails
_NO_LIMIT = httpx.Timeout(None)


class SharedClient(httpx.AsyncClient):
    """An httpx client that is not closed by who got it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def aclose(self) -> None:
        """Do nothing: the loop's end does it."""

    async def close_for_good(self) -> None:
        """Close it."""
        await super().aclose()


class _OwnClient(SharedClient):
    """Sends like *another*, with headers, cookies and hooks of its own.

    It is made when it is first looked into: many agents never do, and that takes longer than a request.
    """

    def __init__(self, another: SharedClient) -> None:
        self._another = another

    def __getattr__(self, name: str) -> Any:
        """Return what is missing, as all is at first. Raises AttributeError."""
        another = vars(self).pop("_another", None)
        if another is None:
            raise AttributeError(f"an httpx.AsyncClient has no {name!r}", name=name, obj=self)
        was_set = vars(self).copy()
        vars(self).update(vars(another))
        self.headers, self.cookies, self.event_hooks = None, NoCookies(), {}  # type: ignore[assignment]
        vars(self).update(was_set)
        return getattr(self, name)


class AgentClients:
    """Those of one loop; *timeout* is of what they send to servers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: httpx.Timeout) -> None:
        self._loop = loop
        self._timeout = timeout
        self._sending = SessionTransport(clients.aiohttp_session)
        self._listening = self._client(ListeningTransport(self._sending))
        self._plain = self._client(self._sending)
        self._local = {
            records: client_on(LocalTransport(records), _NO_LIMIT, SharedClient) for records in (True, False)
        }
        self._sdks: dict[tuple[str | None, bool], AsyncOpenAI] = {}

    def plain(self) -> SharedClient:
        """Return a client for one agent's own requests: what it sets there is nobody else's."""
        return _OwnClient(self._plain)

    def sdk(self, base_url: str | None, api_key: str | None, record: bool) -> AsyncOpenAI:
        """Return the SDK's client for the server there, None: for the engine of whichever episode sends.

        It is the same as before, but for an *api_key*, which might be another each time.
        """
        if api_key is not None:
            return self._sdk(base_url, api_key, record)
        if (base_url, record) not in self._sdks:
            self._sdks[base_url, record] = self._sdk(base_url, _NO_KEY, record)
        return self._sdks[base_url, record]

    async def close(self) -> None:
        """Close all of them. Who comes after this gets new ones."""
        delattr(self._loop, _ATTRIBUTE)
        for client in (self._listening, self._plain, *self._local.values()):
            await client.close_for_good()

    def _sdk(self, base_url: str | None, api_key: str, record: bool) -> AsyncOpenAI:
        from areal_core._agents.sdk import AsyncOpenAI

        client = self._listening if record else self._plain
        return AsyncOpenAI(
            base_url=base_url or BASE_URL,
            api_key=api_key,
            max_retries=0,  # a generation that took too long would be sent again, and again
            # httpx, which it takes beside its own.
            http_client=client if base_url else self._local[record],  # type: ignore[arg-type]
        )

    def _client(self, transport: httpx.AsyncBaseTransport) -> SharedClient:
        return client_on(transport, self._timeout, SharedClient)


def agent_clients() -> AgentClients:
    """Return those of the running loop. Raises RuntimeError past its cleanup, and in a forked child."""
    timeout = clients.httpx_client().timeout
    loop = asyncio.get_running_loop()
    found: AgentClients | None = getattr(loop, _ATTRIBUTE, None)
    if found is None:
        found = AgentClients(loop, timeout)
        register_loop_cleanup(found.close)
        setattr(loop, _ATTRIBUTE, found)
    return found
