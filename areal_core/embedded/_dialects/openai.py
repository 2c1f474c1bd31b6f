"""OpenAI's dialect: completions, which vLLM and SGLang speak too, and chats."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from areal_core.embedded._dialects.chat import Chat
from areal_core.embedded._dialects.dialect import json_body, json_bytes, json_reply
from areal_core.embedded._dialects.openai_asks import Asks, Order
from areal_core.embedded._dialects.openai_replies import ChatWords, CompletionWords, Words, shown_text
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._generating.started import Started
from areal_core.embedded._options import ServerOptions


class OpenAI:
    """Speak OpenAI's dialect; a `Dialect`."""

    def __init__(self, generations: Generations, options: ServerOptions) -> None:
        self._generations = generations
        self._name = options.mode
        self._created = int(time.time())
        model = generations.model
        chat = Chat(model, bare=options.mode == "policy")
        self._asks = Asks(model, chat, self._name, generations.new_id)
        self._completion_words = CompletionWords(model)
        self._chat_words = ChatWords(model)

    def routes(self) -> Sequence[web.RouteDef]:
        """Return its routes."""
        return [
            web.post("/v1/completions", self._completions),
            web.post("/v1/chat/completions", self._chat_completions),
            web.get("/v1/models", self._models),
        ]

    def error(self, message: str, status: int) -> dict[str, Any]:
        """Return the body that says *message*."""
        return openai_error(message, status)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._asks.completion, self._completion_words)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._asks.chat, self._chat_words)

    async def _answer(
        self, request: web.Request, read: Callable[[Any], Order], words: Words
    ) -> web.StreamResponse:
        order = read(await json_body(request))
        with self._generations.start([order.ask], order.stream) as started:
            if order.stream:
                return await self._stream(request, order, started, words)
            (generation,) = await started.ended()
        return json_reply(words.whole(order, generation))

    async def _stream(
        self, request: web.Request, order: Order, started: Started, words: Words
    ) -> web.StreamResponse:
        events = EventStream(request)
        for piece in words.opening(order):
            await events.send(piece)
        tokens = characters = 0
        async for generation in started:
            text = shown_text(self._generations.model, order, generation)
            await events.send(words.piece(order, generation, tokens, text[characters:]))
            tokens, characters = len(generation), len(text)
        if order.include_usage:
            await events.send(words.usage(order, started.generations[0]))
        return await events.end()

    async def _models(self, _request: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": self._created, "owned_by": "areal_core"}
        return web.json_response({"object": "list", "data": [model]})


class EventStream:
    """Answer *request* by server-sent events."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

    async def send(self, event: dict[str, Any]) -> None:
        """Send one event."""
        await self._write(json_bytes(event))

    async def end(self) -> web.StreamResponse:
        """Say that there are no more; return the response."""
        await self._write(b"[DONE]")
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        await self._response.prepare(self._request)
        await self._response.write(b"data: %b\n\n" % data)


def openai_error(message: str, status: int) -> dict[str, Any]:
    """Return OpenAI's body for a request that failed."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
