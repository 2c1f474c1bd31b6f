"""The aiohttp sessions, and the connection pool under each."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections import defaultdict
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from areal_core._http.config import HttpConfig

# A server that answers no control calls must not collect connections without end, nor delay calls to others.
_CONTROL_CONNECTIONS_PER_SERVER = 16

# Aborts and questions about weights come in crowds, one for each of hundreds of generations. They share half
# of these connections: what comes alone, a probe or a pause, finds one at once.
_CROWDED_CONNECTIONS_PER_SERVER = _CONTROL_CONNECTIONS_PER_SERVER // 2

# A silent peer is asked after a minute, then every 15 s; the fourth question without an answer ends it.
_SILENCE_S = 60
_PROBES = {"TCP_KEEPIDLE": _SILENCE_S, "TCP_KEEPALIVE": _SILENCE_S, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Traffic:
    """What went through a loop's data pools, the ones that somebody closed included."""

    def __init__(self) -> None:
        self.opened = 0
        self.requests = 0


class _Protocol(ResponseHandler):
    """One connection. When it ends, whoever reads a reply from it hears of that.

    aiohttp tells nobody when the session is closed, or when what should be a chunk is none: a reader would
    wait for ever.
    """

    def close(self) -> None:
        """Hang up."""
        reply = self._payload
        super().close()
        _end(reply)

    def abort(self) -> None:
        """Hang up, and send nothing more."""
        reply = self._payload
        super().abort()
        _end(reply)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Take note that the peer has hung up."""
        reply = self._payload
        super().connection_lost(exc)
        _end(reply)


def _end(reply: aiohttp.StreamReader | None) -> None:
    if reply is not None and not reply.is_eof() and reply.exception() is None:
        reply.set_exception(aiohttp.ServerDisconnectedError())


class ConnectionPool(aiohttp.TCPConnector):
    """A pool that counts, and whose close waits for no peer."""

    def __init__(self, config: HttpConfig, traffic: Traffic, limit_per_host: int = 0) -> None:
        super().__init__(
            limit=0,
            limit_per_host=limit_per_host,
            keepalive_timeout=config.keepalive_expiry,
            ssl=config.ssl_context or True,
            socket_factory=_open_socket,
        )
        protocols: Any = functools.partial(_Protocol, loop=self._loop)
        self._factory = protocols
        self._traffic = traffic
        self.turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_CROWDED_CONNECTIONS_PER_SERVER)
        )
        """By server, for who comes in a crowd."""
        # Until a connection is really gone. aiohttp forgets one whose request was cancelled at once, though
        # it stays open for as long as the peer does not take the rest of the request.
        self._transports: dict[asyncio.Future[None], asyncio.Transport] = {}

    @property
    def open_connections(self) -> int:
        """How many connections are open, in use or idle."""
        return len(self._transports)

    @property
    def idle_connections(self) -> int:
        """How many connections wait for a request."""
        return sum(map(len, list(self._conns.values())))

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Count one more request, and give it a connection."""
        self._traffic.requests += 1
        return await super().connect(*args, **kwargs)

    async def close(self, **options: Any) -> None:
        """Hang up on everybody now: what a peer has not taken yet it will never get."""
        for transport in self._transports.values():
            transport.abort()
        await super().close(**options)
        if self._transports:
            await asyncio.wait(self._transports)

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        protocol: Any = await super()._create_connection(*args, **kwargs)
        self._traffic.opened += 1
        if (lost := protocol.closed) is not None:  # else it is gone already
            self._transports[lost] = protocol.transport
            lost.add_done_callback(self._forget)
        return protocol

    def _forget(self, lost: asyncio.Future[None]) -> None:
        del self._transports[lost]
        lost.exception()  # or asyncio complains that nobody asked


def open_session(config: HttpConfig, traffic: Traffic) -> aiohttp.ClientSession:
    """Make the session for generations, on the running loop."""
    return _open_session(config, ConnectionPool(config, traffic), config.connect)


def open_control_session(config: HttpConfig) -> aiohttp.ClientSession:
    """Make the session for control calls, on the running loop, with a small pool of its own."""
    pool = ConnectionPool(config, Traffic(), limit_per_host=_CONTROL_CONNECTIONS_PER_SERVER)
    return _open_session(config, pool, config.control_connect)


def _open_session(config: HttpConfig, pool: ConnectionPool, connect_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=pool,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(
            total=config.total, connect=connect_s, sock_connect=connect_s, sock_read=config.sock_read
        ),
        trust_env=config.trust_env,
    )


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Open a socket that probes a silent peer: one that vanished is noticed long before ``sock_read``.

    The probes also keep the way open through routers that forget silent connections.
    """
    family, kind, protocol, *_ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # systems differ in these
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return opened
