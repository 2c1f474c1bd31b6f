"""SGLang's dialect: generating, whole and streamed. The calls that control are in `sglang_control`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from areal_core.embedded._dialects.dialect import json_body, json_bytes, json_reply
from areal_core.embedded._dialects.sglang_asks import Order, read
from areal_core.embedded._dialects.sglang_control import Control
from areal_core.embedded._dialects.sglang_replies import Replies, error
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._generating.started import Started
from areal_core.embedded._options import ServerOptions


class SGLang:
    """Speak SGLang's dialect; a `Dialect`."""

    def __init__(self, generations: Generations, options: ServerOptions) -> None:
        self._generations = generations
        self._incremental = options.incremental_streaming_output
        self._replies = Replies(generations.model, options.weight_version_spans)
        self._control = Control(generations, options)

    def routes(self) -> Sequence[web.RouteDef]:
        """Return its routes."""
        return [web.post("/generate", self._generate), *self._control.routes()]

    def error(self, message: str, _status: int) -> dict[str, Any]:
        """Return the body that says *message*."""
        return error(message)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        order = read(await json_body(request), self._generations.new_id, self._generations.model.encode)
        with self._generations.start([wish.ask for wish in order.wishes], order.stream) as started:
            if order.stream:
                return await self._stream(request, order, started)
            ended = await started.ended()
            label = self._generations.weights.label
            pairs = zip(order.wishes, ended, strict=True)
            replies = [self._replies.reply(wish, generation, label) for wish, generation in pairs]
        return json_reply(replies if order.batched else replies[0])

    async def _stream(self, request: web.Request, order: Order, started: Started) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        places = {generation: place for place, generation in enumerate(started.generations)}
        told = [0] * len(places)
        async for generation in started:
            place = places[generation]
            since = told[place] if self._incremental else 0
            label = self._generations.weights.label
            chunk = self._replies.reply(order.wishes[place], generation, label, since)
            told[place] = len(generation)
            if order.batched:
                chunk["index"] = place
            await response.write(b"data: " + json_bytes(chunk) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response
