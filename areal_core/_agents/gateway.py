"""HTTP for agents that run elsewhere: an OpenAI-compatible endpoint for each episode, with a key of its own.

::

    POST {base_url}/chat/completions     whole or as a stream, with tools
    GET  {base_url}/models
    with "Authorization: Bearer {api_key}"; a key opens its own session only

One gateway serves all episodes of a loop. It is closed with the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass

from aiohttp import web

from areal_core._agents.reply import error_body, models
from areal_core._agents.request import MOST_BODY_BYTES, RefusedError, read_order
from areal_core._agents.scope import Scope
from areal_core._agents.session import Session
from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup

_ATTRIBUTE = "_areal_core_gateways"
_SHUTDOWN_S = 1.0


@dataclass(frozen=True)
class Listening:
    """Where a gateway listens, and how agents find it."""

    host: str = "127.0.0.1"
    """An address or a name; another than this machine's own lets others in, with a key."""
    port: int = 0
    """0 takes a free one."""
    url: str | None = None
    """What agents are told, such as ``http://host.docker.internal:8000``; None: host and port."""


class Gateway:
    """Listens for the agents of all episodes of one loop."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self._url = ""

    async def start(self) -> None:
        """Begin to listen. Raises OSError where that cannot be."""
        app = web.Application(client_max_size=MOST_BODY_BYTES)
        app.router.add_post("/sessions/{session}/v1/chat/completions", self._complete)
        app.router.add_get("/sessions/{session}/v1/models", self._models)
        # An agent that hangs up ends its call.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self._listening.host, self._listening.port).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        host, port = self._runner.addresses[0][:2]
        here = f"[{host}]" if ":" in host else host
        self._url = (self._listening.url or f"http://{here}:{port}").rstrip("/")

    async def close(self) -> None:
        """End all sessions, and listen no more."""
        for session in list(self._sessions.values()):
            await session.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @asynccontextmanager
    async def session(self, scope: Scope) -> AsyncIterator[tuple[str, str]]:
        """Give base URL and key under which an agent makes calls for *scope* during the block.

        Behind it the key opens nothing any more, and the generations of calls under way have ended.
        """
        session = Session(scope)
        self._sessions[session.id] = session
        try:
            yield f"{self._url}/sessions/{session.id}/v1", session.key
        finally:
            del self._sessions[session.id]
            await session.close()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        try:
            session = self._session_of(request)
            order = read_order(await request.read())
            if not order.stream:
                body = await session.run(session.completer.whole(order))
                return web.Response(body=body, content_type="application/json")
            async with aclosing(session.completer.stream(order)) as events:
                return await _send(request, session, events)
        except RefusedError as error:
            return _failure(error.status, str(error))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        try:
            self._session_of(request)
        except RefusedError as error:
            return _failure(error.status, str(error))
        return web.Response(body=models(["policy"]), content_type="application/json")

    def _session_of(self, request: web.Request) -> Session:
        """Return the session that *request* is for. Raises RefusedError, the same whatever is wrong."""
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        session = self._sessions.get(request.match_info["session"])
        if session is None or kind.lower() != "bearer" or not session.admits(key.strip()):
            raise RefusedError(401, "no session with this key is open here")
        return session


async def gateway_of(listening: Listening) -> Gateway:
    """Return the running loop's gateway that listens there, started on first use. Raises OSError."""
    loop = asyncio.get_running_loop()
    gateways: dict[Listening, asyncio.Future[Gateway]] | None = getattr(loop, _ATTRIBUTE, None)
    if gateways is None:
        gateways = {}
        setattr(loop, _ATTRIBUTE, gateways)
    if listening not in gateways:
        # In a context of its own: it outlives the episode that asked first.
        gateways[listening] = loop.create_task(_start(listening, gateways), context=Context())
    return await asyncio.shield(gateways[listening])


async def _start(listening: Listening, gateways: dict[Listening, asyncio.Future[Gateway]]) -> Gateway:
    gateway = Gateway(listening)
    token = register_loop_cleanup(gateway.close)  # before there is something to close
    try:
        await gateway.start()
    except BaseException:
        del gateways[listening]  # the next one tries again
        unregister_loop_cleanup(token)
        raise
    return gateway


async def _send(request: web.Request, session: Session, events: AsyncIterator[bytes]) -> web.StreamResponse:
    """Answer by *events*. Raises RefusedError as long as nothing is sent; later the connection is cut."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})

    async def send() -> None:
        await response.prepare(request)
        async for event in events:
            await response.write(event)
        await response.write_eof()

    try:
        await session.run(send())
    except RefusedError:
        if not response.prepared:
            raise
        if request.transport is not None:
            request.transport.abort()  # an end that looked like one would make a whole reply of half of one
    return response


def _failure(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=error_body(status, text), content_type="application/json")
