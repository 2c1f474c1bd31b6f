"""A server that answers at once: the command the HTTP rows start as a process of its own.

Prints its port and ends when stdin does. ``GET /accepted`` tells how many connections it has accepted.
``POST /generate`` answers as SGLang does, with replies made beforehand: one document, or, where the body asks
for a stream, events. ``GET /large`` answers with `LARGE_BYTES`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import uvloop
from aiohttp import web

import _canned

LARGE_BYTES = 64 * 2**20
GROWING = "growing"
"""The word in a body that asks for events of which each repeats all tokens."""


class Answers:
    """What is answered, made when it is asked for first."""

    def __init__(self) -> None:
        self._whole = b""
        self._events: dict[bool, list[bytes]] = {}

    async def generate(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if b'"stream":true' in body[-400:].replace(b" ", b""):
            return await self._stream(request, GROWING.encode() in body[-400:])
        self._whole = self._whole or _canned.whole()
        return web.Response(body=self._whole, content_type="application/json")

    async def _stream(self, request: web.BaseRequest, growing: bool) -> web.StreamResponse:
        if growing not in self._events:
            count = _canned.GROWING_EVENTS if growing else _canned.EVENTS
            self._events[growing] = _canned.events(count, growing=growing)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self._events[growing]:
            await response.write(event)
        await response.write_eof()
        return response


async def _pong(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(text="pong")


async def _model_info(_: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"weight_version": "default"})


async def _large(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=bytes(LARGE_BYTES), content_type="application/octet-stream")


async def _main() -> None:
    accepted = 0

    async def count(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=str(accepted))

    paths: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
        "/accepted": count,
        "/generate": Answers().generate,
        "/get_model_info": _model_info,
        "/large": _large,
    }

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await paths.get(request.path, _pong)(request)
        except ConnectionError:  # a client that has seen enough
            return web.Response()

    class Server(web.Server):
        def __call__(self) -> web.RequestHandler:
            nonlocal accepted
            accepted += 1
            return super().__call__()

    runner = web.ServerRunner(Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=8192).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_main())
