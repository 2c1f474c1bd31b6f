"""Servers the HTTP tests talk to, on the test's own loop or in a process of their own."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from aiohttp import web

import areal_core._http.pool
import areal_core._http.transport  # noqa: F401 - both now, so that no test is the first to import them
from children import StartScript

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
T = TypeVar("T")
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Prints its port, and answers none of its n requests before all have arrived. GET /stats, answered at once,
# tells the connections accepted and the requests seen.
_GATHERING_SERVER = """
    import asyncio, os, sys
    from aiohttp import web
    from areal_core.workflow_context import ensure_descriptors

    async def main(expected):
        seen, accepted, all_here = 0, 0, asyncio.Event()

        async def answer(request):
            nonlocal seen
            if request.path == "/stats":
                return web.json_response({"accepted": accepted, "seen": seen})
            await request.read()
            seen += 1
            if seen >= expected:
                all_here.set()
            await all_here.wait()
            return web.Response(text="ok")

        class Server(web.Server):
            def __call__(self):
                nonlocal accepted
                accepted += 1
                return super().__call__()

        ensure_descriptors(expected)
        runner = web.ServerRunner(Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=expected + 1)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the test closes the pipe
        all_here.set()
        await runner.cleanup()

    asyncio.run(main(int(sys.argv[1])))
"""


@contextmanager
def gathering(start_script: StartScript, requests: int) -> Iterator[str]:
    """Run a server as a process that answers none of its *requests* before all have arrived."""
    # Not in asyncio's debug mode, which takes ten times as long.
    server = start_script(_GATHERING_SERVER, str(requests), flags=("-W", "error"))
    assert server.stdout is not None
    yield f"http://127.0.0.1:{server.stdout.readline().strip()}/"
    _, stderr = server.communicate(timeout=10)
    assert (server.returncode, stderr) == (0, "")


class Holding:
    """A handler that answers nobody before the test says so."""

    def __init__(self) -> None:
        self.arrived = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.arrived.release()
        await self.go_on.wait()
        return web.Response(text="pong")

    async def wait_for(self, requests: int) -> None:
        """Wait until so many more requests have arrived."""
        for _ in range(requests):
            await self.arrived.acquire()


class Peer:
    """A server on the running loop."""

    def __init__(self) -> None:
        self.url = ""
        self.accepted = 0
        """Connections so far."""

        self.requests: list[web.BaseRequest] = []
        """Requests so far, each noted before its handler is called."""


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[Peer]:
    """Run an aiohttp server that answers each request by *handler*."""
    peer = Peer()

    async def noting(request: web.BaseRequest) -> web.StreamResponse:
        peer.requests.append(request)
        return await handler(request)

    class Server(web.Server):
        def __call__(self) -> Any:
            peer.accepted += 1
            return super().__call__()

    runner = web.ServerRunner(Server(noting))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096, **options).start()
        scheme = "https" if options.get("ssl_context") else "http"
        peer.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield peer
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[Peer]:
    """Run a server that speaks no HTTP but what *talk* says, which is called once per connection."""
    peer = Peer()
    talks: set[asyncio.Task[None]] = set()

    async def talk_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            talks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(talk_and_hang_up, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read the head of one request."""
    return await reader.readuntil(b"\r\n\r\n")


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by a reset, as a peer does that crashed."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class FullListener:
    """An address where connecting takes for ever: it listens, and its queue is full."""

    def __enter__(self) -> str:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        address = self._listener.getsockname()
        self._queued = []
        while True:
            queued = socket.socket()
            self._queued.append(queued)
            queued.settimeout(0.05)
            try:
                queued.connect(address)
            except TimeoutError:
                return f"http://{address[0]}:{address[1]}"

    def __exit__(self, *_: object) -> None:
        for queued in self._queued:
            queued.close()
        self._listener.close()


def refusing_url() -> str:
    """Return the URL of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def limited(work: Awaitable[T], seconds: float = 15) -> T:
    """Await *work*, no longer than that: a test that fails should not hang."""
    async with asyncio.timeout(seconds):
        return await work
