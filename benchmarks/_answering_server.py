"""A server that answers at once: the command the HTTP benchmark starts as a process of its own.

Prints its port and ends when stdin does. ``GET /accepted`` tells how many connections it has accepted.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web


async def _main() -> None:
    accepted = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/accepted":
            return web.Response(text=str(accepted))
        await request.read()
        return web.Response(text="pong")

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
