"""Chat completions without a socket: what an SDK's client in an episode sends is answered where it is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import httpx

from areal_core._agents import scope
from areal_core._agents.reply import error_body, models
from areal_core._agents.request import RefusedError, read_order
from areal_core._agents.scope import Scope

BASE_URL = "http://areal-core.invalid/v1"
"""Where such a client believes its server is; no name under ``.invalid`` is anybody's (RFC 2606)."""

_NO_EPISODE = (
    "this client asks the engine of an episode, and no episode runs here; use it in arun_episode, or give "
    "get_openai_client() the base_url of a server"
)
_JSON = {"Content-Type": "application/json"}
_EVENTS = {"Content-Type": "text/event-stream"}


class LocalTransport(httpx.AsyncBaseTransport):
    """Answers with the engine of the episode whose task sends the request, and records it there."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer *request*; what is refused is told as OpenAI does, which its SDK raises."""
        here = scope.current.get()
        if here is None:
            return _failure(400, _NO_EPISODE)
        if request.method == "GET" and request.url.path.endswith("/models"):
            return httpx.Response(200, headers=_JSON, content=models(["policy"]))
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return _failure(404, f"{request.method} {request.url.path}: there are only chat completions")
        try:
            return await _answer(here, await request.aread())
        except RefusedError as error:
            return _failure(error.status, str(error))


async def _answer(here: Scope, body: bytes) -> httpx.Response:
    order = read_order(body)
    if not order.stream:
        return httpx.Response(200, headers=_JSON, content=await here.completer.whole(order))
    return httpx.Response(200, headers=_EVENTS, stream=_Events(here.completer.stream(order)))


class _Events(httpx.AsyncByteStream):
    """The body of a streamed reply."""

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        self._events = events

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        await self._events.aclose()


def _failure(status: int, text: str) -> httpx.Response:
    return httpx.Response(status, headers=_JSON, content=error_body(status, text))
