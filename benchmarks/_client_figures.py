"""What is measured of HTTP clients: each function takes a client, sends its requests, and returns numbers."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import httpx
import uvloop

from areal_core.workflow_context import get_aiohttp_session, get_httpx_client

Send = Callable[[], Awaitable[object]]
Measurement = Callable[[Send], Awaitable[Any]]
Client = Callable[[str, Measurement], Coroutine[Any, Any, Any]]
"""Makes a client for a URL, gives its way to send one request to a measurement, and returns the result."""

BODY = b"x" * 128
LIMITS = {"max_connections": 4096, "max_keepalive_connections": 1024, "keepalive_expiry": 30}
"""Those that areal 1.0.4 gives httpx."""
MOST_S = 2.0
"""What a stretch of requests may take: httpx by itself comes to a standstill with 256 in flight."""


async def bare_session(url: str, measurement: Measurement) -> Any:
    """Take a session with nothing but its limits lifted."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await measurement(_posting(session, url))


async def closing_session(url: str, measurement: Measurement) -> Any:
    """Take a session that closes every connection after its request."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        return await measurement(_posting(session, url))


async def our_session(url: str, measurement: Measurement) -> Any:
    """Ask for the loop's session before every request, as a workflow does."""

    async def send() -> None:
        session = await get_aiohttp_session()
        async with session.post(url, data=BODY) as reply:
            await reply.read()

    return await measurement(send)


async def our_client(url: str, measurement: Measurement) -> Any:
    """Ask for the loop's httpx client before every request."""

    async def send() -> None:
        await (await get_httpx_client()).post(url, content=BODY)

    return await measurement(send)


async def httpx_itself(url: str, measurement: Measurement) -> Any:
    """Take httpx with its own transport and the limits areal 1.0.4 gives it."""
    transport = httpx.AsyncHTTPTransport(retries=3, limits=httpx.Limits(**LIMITS))
    async with httpx.AsyncClient(transport=transport, timeout=3600) as client:
        return await measurement(lambda: client.post(url, content=BODY))


async def httpx2_itself(url: str, measurement: Measurement) -> Any:
    """Take httpx2, which OpenAI's SDK has used since its version 3, likewise."""
    import httpx2

    transport = httpx2.AsyncHTTPTransport(retries=3, limits=httpx2.Limits(**LIMITS))
    async with httpx2.AsyncClient(transport=transport, timeout=3600) as client:
        return await measurement(lambda: client.post(url, content=BODY))


def _posting(session: aiohttp.ClientSession, url: str) -> Send:
    async def send() -> None:
        async with session.post(url, data=BODY) as reply:
            await reply.read()

    return send


async def _send_all(send: Send, count: int, in_flight: int, most_s: float | None = None) -> int:
    """Send *count* requests, *in_flight* at once, within *most_s* seconds; return how many were answered."""
    left = iter(range(count))
    answered = 0

    async def worker() -> None:
        nonlocal answered
        for _ in left:
            await send()
            answered += 1

    workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
    done, late = await asyncio.wait(workers, timeout=most_s)
    found = answered
    for one in late:
        one.cancel()
    for one in done:
        one.result()
    return found


def requests(client: Client, url: str, count: int, in_flight: int, *, warm: bool) -> Mapping[str, float]:
    """Return the requests per second, and the seconds of CPU that one costs the client's process.

    CPU is the steadier of the two. If it is to be *warm*, as many as are in flight go before, unmeasured. A
    client that takes longer than `MOST_S` is judged by what it did until then.
    """

    async def measurement(send: Send) -> Mapping[str, float]:
        if warm:
            await _send_all(send, in_flight, in_flight)
        gc.collect()
        begin, cpu = time.perf_counter(), time.process_time()
        answered = await _send_all(send, count, in_flight, MOST_S)
        return {
            "rate": answered / (time.perf_counter() - begin),
            "cpu": (time.process_time() - cpu) / answered,
        }

    measured: Mapping[str, float] = _measured(client, url, measurement)
    return measured


def _measured(client: Client, url: str, measurement: Measurement) -> Any:
    """Run a measurement on a loop of its own; what a client does at its end is not waited for."""
    loop = uvloop.new_event_loop()
    found: asyncio.Future[Any] = loop.create_future()

    async def keep(send: Send) -> None:
        found.set_result(await measurement(send))

    def give_up(task: asyncio.Task[Any]) -> None:
        if not found.done():
            found.set_exception(task.exception() or RuntimeError("no measurement was made"))

    task = loop.create_task(client(url, keep))
    task.add_done_callback(give_up)
    return loop.run_until_complete(found)


def opened(client: Client, url: str, count: int, in_flight: int) -> float:
    """Return how many connections the server accepted for each request in flight."""

    async def measurement(send: Send) -> float:
        before = await _accepted(url)
        await _send_all(send, count, in_flight)
        return (await _accepted(url) - before - 1) / in_flight  # one is that of the question

    return float(_measured(client, url, measurement))


def errors(client: Client, url: str, in_flight: int) -> float:
    """Return how many of *in_flight* requests at once fail."""

    async def measurement(send: Send) -> float:
        outcomes = await asyncio.gather(*(send() for _ in range(in_flight)), return_exceptions=True)
        return sum(isinstance(outcome, BaseException) for outcome in outcomes)

    return float(_measured(client, url, measurement))


async def _accepted(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url + "accepted") as reply:
        return int(await reply.text())
