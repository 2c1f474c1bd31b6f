"""Chat completions without a socket: what an SDK's client in an episode sends is answered where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import TypeVar

import httpx

from areal_core._agents import scope
from areal_core._agents.reply import error_body, model, models
from areal_core._agents.request import RefusedError, read_order
from areal_core._agents.scope import Scope

_HOST = "areal-core.invalid"
BASE_URL = f"http://{_HOST}/v1"
"""Where such a client believes its server is; no name under ``.invalid`` is anybody's (RFC 2606)."""

_NO_EPISODE = (
    "this client asks the engine of an episode, and no episode runs here; use it in arun_episode, or give "
    "get_openai_client() the base_url of a server"
)
_ELSEWHERE = (
    "this client asks the engine of the episode; give get_openai_client() the base_url of another server"
)
_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream"}

T = TypeVar("T")


class LocalTransport(httpx.AsyncBaseTransport):
    """Answers with the engine of the episode whose task sends the request; it is recorded if *records*."""

    def __init__(self, records: bool) -> None:
        self._records = records

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer *request*; what is refused is told as OpenAI does, which its SDK raises.

        Raises httpx.ReadTimeout after the request's own limit for reading, None is none.
        """
        here = scope.current.get()
        if request.url.host != _HOST:
            return _failure(400, _ELSEWHERE)
        if here is None:
            return _failure(400, _NO_EPISODE)
        path = request.url.path.removeprefix("/v1")
        if request.method == "GET" and path.startswith("/models"):
            name = path.removeprefix("/models").strip("/")
            return httpx.Response(200, headers=_JSON, content=model(name) if name else models())
        if request.method != "POST" or path != "/chat/completions":
            return _failure(404, f"{request.method} {request.url.path}: there are only chat completions")
        try:
            return await _answer(here if self._records else Scope(here.engine), request)
        except RefusedError as error:
            return _failure(error.status, str(error))


async def _answer(here: Scope, request: httpx.Request) -> httpx.Response:
    body = await request.aread()
    order = read_order(body)
    if not order.stream:
        reply = await _in_time(here.completer.whole(order, len(body)), request)
        return httpx.Response(200, headers=_JSON, content=reply)
    events = _Events(here.completer.stream(order, len(body)), request)
    await events.begin()
    return httpx.Response(200, headers=_EVENTS, stream=events)


class _Events(httpx.AsyncByteStream):
    """The body of a streamed reply."""

    def __init__(self, events: AsyncGenerator[bytes], request: httpx.Request) -> None:
        self._events = events
        self._request = request
        self._first = b""

    async def begin(self) -> None:
        """Wait for the first event. Raises RefusedError when there is none."""
        self._first = await _in_time(anext(self._events), self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        while event := await _in_time(anext(self._events, b""), self._request):
            yield event

    async def aclose(self) -> None:
        await self._events.aclose()


async def _in_time(work: Awaitable[T], request: httpx.Request) -> T:
    """Return what *work* does. Raises httpx.ReadTimeout."""
    limit = request.extensions.get("timeout", {}).get("read")
    ours = asyncio.timeout(limit)
    try:
        async with ours:
            return await work
    except TimeoutError:
        if not ours.expired():
            raise  # it is the engine's
        raise httpx.ReadTimeout(f"no answer within {limit:g} s", request=request) from None


def _failure(status: int, text: str) -> httpx.Response:
    return httpx.Response(status, headers=_JSON, content=error_body(status, text))
