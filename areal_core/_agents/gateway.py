"""HTTP for agents that run elsewhere: an OpenAI-compatible endpoint for each episode, with a key of its own.

::

    POST {base_url}/chat/completions     whole or as a stream, with tools
    GET  {base_url}/models
    with "Authorization: Bearer {api_key}"; a key opens its own session only

One gateway serves all episodes of a loop. It is closed with the loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from contextlib import aclosing
from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from areal_core._agents.reply import RECORDED, error_body, model, models
from areal_core._agents.request import MOST_BODY_BYTES, RefusedError, read_order
from areal_core._agents.scope import Scope
from areal_core._agents.session import Session
from areal_core._log import describe, get_logger, log
from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup

if TYPE_CHECKING:
    from areal_core._agents.completer import Completer

_ATTRIBUTE = "_areal_core_gateways"
_SHUTDOWN_S = 1.0
_BACKLOG = 4096  # all agents may come at once; the kernel takes less if it allows less
_EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **RECORDED}
_REPLY = {"Content-Type": "application/json", **RECORDED}

_JSON = "application/json"
_PATH = re.compile(r"/sessions/(?P<session>\w+)/v1/(?P<call>.*)")

_log = get_logger()


class Listening(NamedTuple):
    """Where a gateway listens."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""


class _ServersLog:
    """Takes what aiohttp says of connections."""

    def debug(self, *_: object, **_options: object) -> None:
        """Say nothing."""

    def exception(self, *_: object, exc_info: BaseException | None = None, **_options: object) -> None:
        """Say what failed here; of requests that are no HTTP only what kind of error that was.

        A key may be in those, and anybody who can connect could fill the log with them.
        """
        if isinstance(exc_info, HttpProcessingError):
            log(_log, "debug", "gateway_refused_connection", {"error": type(exc_info).__name__})
        elif not isinstance(exc_info, ConnectionError):  # that is an agent's hanging up, or `_answer`'s
            _say_failed(exc_info)


def _say_failed(error: BaseException | None) -> None:
    log(_log, "error", "gateway_failed", {"error": describe(error), "exc_info": error})


class Gateway:
    """Listens for the agents of all episodes of one loop."""

    def __init__(self, listening: Listening) -> None:
        self._listening = listening
        self._sessions: dict[str, Session] = {}
        self._runner: web.ServerRunner | None = None
        self._url = ""

    async def start(self) -> None:
        """Begin to listen. Raises OSError where that cannot be."""
        # No application: there are three paths, and a router takes as long as all else that is done here. An
        # agent that hangs up ends its call.
        server = web.Server(
            self._answer,
            request_factory=_new_request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # it would be done before anybody has looked at the key
            logger=_ServersLog(),
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_S)
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, *self._listening, backlog=_BACKLOG).start()
        except BaseException:
            await self._runner.cleanup()
            raise
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """End all sessions, and listen no more."""
        for session in list(self._sessions.values()):
            await session.completer.end()
        if self._runner is not None:
            await self._runner.cleanup()

    def session(self, scope: Scope, url: str | None = None) -> Session:
        """Return a context with a base URL and a key, under which an agent makes calls for *scope*.

        *url* is where it finds this gateway, None: host and port.
        """
        return Session(scope, (url or self._url).rstrip("/"), self._sessions)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer *request*; what is refused, or fails, is told as OpenAI does."""
        try:
            return await self._route(request)
        except RefusedError as error:
            status, text = error.status, str(error)
        except web.HTTPException as error:
            status, text = error.status, f"{request.method} {request.path}: {error.reason}"
        except HttpProcessingError as error:
            status, text = 400, f"the body cannot be read: {error.message}"
        except Exception as error:
            transport = request.transport
            has_hung_up = transport is None or transport.is_closing()
            if not (has_hung_up and isinstance(error, ConnectionError)):  # as writes to such an agent raise
                _say_failed(error)
            if request.writer.output_size > 0:
                raise ConnectionAbortedError from error  # aiohttp hangs up
            status, text = 500, f"the gateway failed: {describe(error)}"
        return web.Response(status=status, body=error_body(status, text), content_type=_JSON)

    def _route(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Return what will answer *request*. Raises RefusedError."""
        found = _PATH.fullmatch(request.path)
        name, call = found.groups() if found else ("", "")
        session = self._session_of(request, name)
        if call == "chat/completions" and request.method == "POST":
            session.enter_context()  # aiohttp answers each request in a task of its own
            return self._complete(request, session.completer)
        first, _, rest = call.partition("/")
        if first == "models" and request.method == "GET":
            return self._say_models(rest)
        known = first == "models" or call == "chat/completions"
        raise RefusedError(405 if known else 404, f"{request.method} {call}: there are only chat completions")

    async def _say_models(self, name: str) -> web.Response:
        return web.Response(body=model(name) if name else models(), content_type=_JSON)

    async def _complete(self, request: web.BaseRequest, completer: Completer) -> web.StreamResponse:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RefusedError(415, "the body is compressed; send it as it is")
        length = request.content_length or 0
        if length > MOST_BODY_BYTES:  # before it is asked for
            raise web.HTTPRequestEntityTooLarge(MOST_BODY_BYTES, length)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the reply itself has not begun
        body = await request.read()
        order = read_order(body)
        if not order.stream:
            reply = await completer.whole(order, len(body))
            return web.Response(body=reply, headers=_REPLY)
        async with aclosing(completer.stream(order, len(body))) as events:
            first = await anext(events)  # which tells whether there is something to stream
            response = web.StreamResponse(headers=_EVENTS)
            await response.prepare(request)
            await response.write(first)
            async for event in events:
                await response.write(event)
        await response.write_eof()
        return response

    def _session_of(self, request: web.BaseRequest, name: str) -> Session:
        """Return the session *name*, if *request* has its key. Raises RefusedError, whatever is wrong."""
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        session = self._sessions.get(name)
        if session is None or kind.lower() != "bearer" or not session.admits(key.strip()):
            raise RefusedError(401, "no session with this key is open here")
        return session


async def gateway_of(listening: Listening) -> Gateway:
    """Return the running loop's gateway that listens there, started on first use. Raises OSError."""
    loop = asyncio.get_running_loop()
    gateways: dict[Listening, asyncio.Task[Gateway]] | None = getattr(loop, _ATTRIBUTE, None)
    if gateways is None:
        gateways = {}
        setattr(loop, _ATTRIBUTE, gateways)
    if listening not in gateways:
        # In a context of its own: it outlives the episode that asked first.
        gateways[listening] = loop.create_task(_start(listening, gateways), context=Context())
    return await asyncio.shield(gateways[listening])


async def _start(listening: Listening, gateways: dict[Listening, asyncio.Task[Gateway]]) -> Gateway:
    gateway = Gateway(listening)

    async def close() -> None:
        gateways.pop(listening, None)  # whoever comes after this gets a new one
        await gateway.close()

    token = register_loop_cleanup(close)  # before there is something to close
    try:
        await gateway.start()
    except BaseException:
        del gateways[listening]  # the next one tries again
        unregister_loop_cleanup(token)
        raise
    return gateway


def _new_request(
    message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MOST_BODY_BYTES)
