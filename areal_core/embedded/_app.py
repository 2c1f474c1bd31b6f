"""The HTTP side of the embedded server: routes, errors as JSON, and what is counted where."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from typing import Any

from aiohttp import web

from . import _sglang
from ._checks import BadRequestError
from ._generations import DuplicateIdError, Generations
from ._options import ServerOptions
from ._stats import Counters, ServerStats

# A batch of 64 prompts of 32 000 tokens is 14 MB of JSON.
_MAX_BODY_BYTES = 256 * 2**20

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServerApp:
    """Answer the requests of one server."""

    def __init__(self, options: ServerOptions) -> None:
        self.counters = Counters()
        self._generations = Generations(options, self.counters)

    def build(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._count_and_explain])
        app.add_routes(
            [
                web.post("/generate", self._generate),
                web.get("/health", self._health),
                web.get("/stats", self._stats),
            ]
        )
        return app

    @web.middleware
    async def _count_and_explain(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self.counters.add(requests=1)
        try:
            return await handler(request)
        except BadRequestError as error:
            return web.json_response(_sglang.error(str(error)), status=400)
        except DuplicateIdError as error:
            message = f"rid={error.args[0]!r} is running already; abort it first, or use another id"
            return web.json_response(_sglang.error(message), status=400)
        except web.HTTPException as error:
            message = f"{request.method} {request.path}: {error.reason}"
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return web.json_response(_sglang.error(message), status=error.status, headers=headers)

    async def _generate(self, request: web.Request) -> web.Response:
        wishes, batched = _sglang.read(await _body(request), self._generations.new_id)
        done = await self._generations.generate([wish.ask for wish in wishes])
        now = asyncio.get_running_loop().time()
        replies = [_sglang.reply(wish, one, now) for wish, one in zip(wishes, done, strict=True)]
        return web.json_response(replies if batched else replies[0])

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _stats(self, request: web.Request) -> web.Response:
        """Answer with the counters; ``?in_flight=64`` first waits until that many run, and so on."""
        known = [spec.name for spec in fields(ServerStats)]
        wanted = {}
        for name, value in request.query.items():
            if name not in known:
                raise BadRequestError(name, value, f"is not a counter; there are {', '.join(known)}")
            if not value.isdecimal():
                raise BadRequestError(name, value, "is not a number to wait for")
            wanted[name] = int(value)
        return web.json_response(asdict(await self.counters.reach(wanted)))


async def _body(request: web.Request) -> Any:
    body = await request.read()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("body", body, f"is not JSON: {str(error)[:200]}") from None
