"""The HTTP clients of each event loop. They live on the loop itself, and die with it.

Nothing else remembers them: a registry by thread or by id would hand out the clients of a loop that is
gone, and grow. Between "is there one?" and "here it is" nothing is awaited, so that all who ask at once
get the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from areal_core._http.config import HttpConfig
from areal_core._http.descriptors import ensure_descriptors_once
from areal_core._process import home
from areal_core.loop_cleanup import register_loop_cleanup

if TYPE_CHECKING:
    import aiohttp
    import httpx

_ATTRIBUTE = "_areal_core_http_clients"

_config = HttpConfig()  # for loops that have no clients yet


@dataclass(frozen=True)
class HttpClientStats:
    """What a loop's clients have done by now, control calls not counted."""

    open: int
    """Connections that are open."""

    idle: int
    """Those of them that wait for a request."""

    opened: int
    """Connections opened so far."""

    requests: int
    """Requests sent so far; one that is sent again counts twice."""


class HttpClientManager:
    """The HTTP clients of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: HttpConfig) -> None:
        from areal_core._http.pool import Traffic

        self._loop = loop
        self._config = config
        self._home = home()
        self._traffic = Traffic()
        self._session: aiohttp.ClientSession | None = None
        self._control: aiohttp.ClientSession | None = None
        self._client: httpx.AsyncClient | None = None

    @classmethod
    def current(cls) -> Self | None:
        """Return what holds the clients of the running loop; None where none runs, or it has no clients."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        manager: Self | None = getattr(loop, _ATTRIBUTE, None)
        return manager

    def stats(self) -> HttpClientStats:
        """Return what the clients have done by now. Any thread may ask."""
        pool: Any = self._session and self._session.connector  # a ConnectionPool, or None
        return HttpClientStats(
            open=pool.open_connections if pool else 0,
            idle=pool.idle_connections if pool else 0,
            opened=self._traffic.opened,
            requests=self._traffic.requests,
        )

    def _aiohttp_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            from areal_core._http.pool import open_session

            self._session = open_session(self._config, self._traffic)
        return self._session

    def _control_session(self) -> aiohttp.ClientSession:
        if self._control is None or self._control.closed:
            from areal_core._http.pool import open_control_session

            self._control = open_control_session(self._config)
        return self._control

    def _httpx_client(self) -> httpx.AsyncClient:
        if self._client is None or self._client.is_closed:
            from areal_core._http.transport import open_client

            self._client = open_client(self._config, aiohttp_session)
        return self._client

    async def _close(self) -> None:
        """Close the clients. A callback of the same close that still wants one gets new ones."""
        delattr(self._loop, _ATTRIBUTE)
        if self._client is not None:
            await self._client.aclose()
        for session in (self._session, self._control):
            if session is not None:
                await session.close()


def aiohttp_session() -> aiohttp.ClientSession:
    """Return the running loop's session."""
    return _of_running_loop()._aiohttp_session()


def control_session() -> aiohttp.ClientSession:
    """Return the running loop's session for control calls."""
    return _of_running_loop()._control_session()


def httpx_client() -> httpx.AsyncClient:
    """Return the running loop's httpx client."""
    return _of_running_loop()._httpx_client()


def configure_http(config: HttpConfig) -> None:
    """Set how the clients of loops behave that have none yet; loops that have some keep them as they are.

    So a trainer calls it before its first rollout. Raises RuntimeError, and sets nothing, when the
    running loop's clients were made with another config; on a thread without a loop it cannot tell.
    """
    global _config
    if not isinstance(config, HttpConfig):
        raise TypeError(f"config={config!r} is not an HttpConfig; pass HttpConfig(...)")
    manager = HttpClientManager.current()
    if manager is not None and manager._config != config:
        raise RuntimeError(
            f"this loop's HTTP clients were made with {manager._config}, not {config}; "
            "configure before the loop's first client"
        )
    _config = config


def _of_running_loop() -> HttpClientManager:
    manager = HttpClientManager.current()
    if manager is None:
        loop = asyncio.get_running_loop()
        manager = HttpClientManager(loop, _config)
        register_loop_cleanup(manager._close)
        setattr(loop, _ATTRIBUTE, manager)
        ensure_descriptors_once(_config.connections)
    elif manager._home is not home():
        # Its clients must not be used, nor dropped: their sockets and the selector are the parent's too.
        raise RuntimeError("this event loop belongs to the parent process; make a new one in this process")
    return manager
