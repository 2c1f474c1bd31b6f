"""What the tests of exchanges share: a key, calls to make, servers that say one thing, what errors show."""

from __future__ import annotations

import asyncio
import contextlib
import re
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp

from areal_core._engine.backend import HttpCall
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.exchange import Exchange
from areal_core.workflow_context import HttpClientManager, get_aiohttp_session
from peers import Peer, Talk

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Use = Callable[[aiohttp.ClientSession], Awaitable[None]]

KEY = "sk-s3cret/Key+1"
POST = HttpCall("POST", "/generate", b'{"input_ids": [1, 2]}')
GET = HttpCall("GET", "/health")


class RunWithSession(Protocol):
    """The type of fixture ``use``."""

    def __call__(self, work: Use) -> None: ...


def run_with_session(loop_factory: LoopFactory, work: Use) -> None:
    """Run *work* with the session of a new loop, which must not complain."""

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "incoming connection" not in context["message"]:  # asyncio's TLS servers on those who go again
            complaints.append(context)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(complain)
        async with asyncio.timeout(10):
            await work(await get_aiohttp_session())

    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(main())
    assert complaints == [], complaints


def exchange_with(peer: Peer | str, *, key: str | None = KEY, most_bytes: int = 2**20) -> Exchange:
    """Return an exchange with a server of a test."""
    url = peer if isinstance(peer, str) else peer.url
    return Exchange(Address.parse(url), key, most_bytes)


async def take_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request, its body included."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


def saying(*replies: bytes) -> Talk:
    """Return a server's side of a connection: one of *replies* to each request, then it hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # there is no next request
            for reply in replies:
                await take_request(reader)
                writer.write(reply)
                await writer.drain()

    return talk


def reply_of(status: str, body: bytes, *headers: str) -> bytes:
    """Return a reply in bytes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunks(*pieces: bytes) -> bytes:
    """Return *pieces* as chunks of a body, without its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


async def add_events(exchange: Exchange, session: aiohttp.ClientSession, seen: list[bytes]) -> None:
    """Ask for a stream and append its events to *seen* as they come."""
    async with exchange.open(session, POST) as reply:
        async for event in reply.events():
            seen.append(event)  # noqa: PERF401 - those before an error too


async def until_all_are_closed() -> None:
    """Wait until no connection is left open."""
    manager = HttpClientManager.current()
    assert manager is not None
    while manager.stats().open:  # noqa: ASYNC110 - the pool tells nobody
        await asyncio.sleep(0)


def all_shown(error: BaseException) -> str:
    """Return everything a log may show of *error*, and of all that is chained to it."""
    shown = "".join(traceback.format_exception(error))
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and one not in seen:
            seen.append(one)
            left += [one.__cause__, one.__context__]
            shown += f"{one}{one!r}{one.args!r}{vars(one)!r}"
    return shown
