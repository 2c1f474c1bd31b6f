"""Measure the HTTP clients against a bare aiohttp session and httpx's own transport, in one run.

The server answers at once and has a process of its own; client and server share the machine. Ratios are
medians over alternating pairs. Ends with 1 when something failed that must hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvloop

from _children import MeasurementError, in_child
from _table import Aim, Line, Reading, Row, lines, measure, medians, number, ratio
from areal_core.workflow_context import ensure_descriptors, get_aiohttp_session, get_httpx_client

Send = Callable[[], Awaitable[object]]
Measurement = Callable[[Send], Awaitable[float]]
Client = Callable[[str, Measurement], Coroutine[Any, Any, float]]
"""Makes a client for a URL, gives its way to send one request to a measurement, and returns the result."""

BODY = b"x" * 128
MANY = 4096


async def bare_session(url: str, measurement: Measurement) -> float:
    """Take a session with nothing but its limits lifted."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send() -> None:
            async with session.post(url, data=BODY) as reply:
                await reply.read()

        return await measurement(send)


async def our_session(url: str, measurement: Measurement) -> float:
    """Ask for the loop's session before every request, as a workflow does."""

    async def send() -> None:
        session = await get_aiohttp_session()
        async with session.post(url, data=BODY) as reply:
            await reply.read()

    return await measurement(send)


async def closing_session(url: str, measurement: Measurement) -> float:
    """Take a session that closes every connection after its request."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send() -> None:
            async with session.post(url, data=BODY) as reply:
                await reply.read()

        return await measurement(send)


async def own_transport(url: str, measurement: Measurement) -> float:
    """Take httpx with its own transport and the limits areal 1.0.4 gives it."""
    limits = httpx.Limits(max_connections=4096, max_keepalive_connections=1024, keepalive_expiry=30)
    transport = httpx.AsyncHTTPTransport(retries=3, limits=limits)
    async with httpx.AsyncClient(transport=transport, timeout=3600) as client:
        return await measurement(lambda: client.post(url, content=BODY))


async def our_client(url: str, measurement: Measurement) -> float:
    """Ask for the loop's httpx client before every request."""

    async def send() -> None:
        await (await get_httpx_client()).post(url, content=BODY)

    return await measurement(send)


async def _send_all(send: Send, requests: int, in_flight: int) -> None:
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await send()

    await asyncio.gather(*(worker() for _ in range(in_flight)))


def throughput(client: Client, url: str, requests: int, in_flight: int) -> float:
    """Return the requests per second; as many as are in flight go before, unmeasured."""

    async def measurement(send: Send) -> float:
        await _send_all(send, in_flight, in_flight)
        begin = time.perf_counter()
        await _send_all(send, requests, in_flight)
        return requests / (time.perf_counter() - begin)

    return uvloop.run(client(url, measurement))


def cpu(client: Client, url: str, requests: int, in_flight: int) -> float:
    """Return the seconds of CPU a request costs the client's process; steadier than what a clock shows."""

    async def measurement(send: Send) -> float:
        await _send_all(send, in_flight, in_flight)
        begin = time.process_time()
        await _send_all(send, requests, in_flight)
        return (time.process_time() - begin) / requests

    return uvloop.run(client(url, measurement))


def opened(client: Client, url: str, requests: int, in_flight: int) -> float:
    """Return how many connections the server accepted for each request in flight."""

    async def measurement(send: Send) -> float:
        before = await _accepted(url)
        await _send_all(send, requests, in_flight)
        return (await _accepted(url) - before - 1) / in_flight  # one is that of the question

    return uvloop.run(client(url, measurement))


def errors(client: Client, url: str, in_flight: int) -> float:
    """Return how many of *in_flight* requests at once fail."""

    async def measurement(send: Send) -> float:
        outcomes = await asyncio.gather(*(send() for _ in range(in_flight)), return_exceptions=True)
        return sum(isinstance(outcome, BaseException) for outcome in outcomes)

    return uvloop.run(client(url, measurement))


async def _accepted(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url + "accepted") as reply:
        return int(await reply.text())


def all_rows(url: str, quick: bool) -> Iterator[Row]:
    """Yield the rows of the table, for the server at *url*."""
    divisor = 8 if quick else 1
    for in_flight in (64, 256):
        many, few = 8192 // divisor, 256  # httpx's own transport needs seconds for that
        sessions = {"bare": bare_session, "ours": our_session}
        yield Row(
            f"session-{in_flight}",
            f"get_aiohttp_session() beside a bare session, {in_flight} in flight",
            {name: partial(throughput, client, url, many, in_flight) for name, client in sessions.items()},
            (ratio("ours", "bare", Aim(0.95, at_most=False)),),
            unit="requests/s",
            per_unit=1,
            more=2,
        )
        yield Row(
            f"session-cpu-{in_flight}",
            f"CPU time of a request by get_aiohttp_session() beside a bare session, {in_flight} in flight",
            {name: partial(cpu, client, url, many, in_flight) for name, client in sessions.items()},
            (ratio("ours", "bare", Aim(1.05)),),
            unit="us",
            per_unit=1e-6,
            more=2,
        )
        yield Row(
            f"httpx-{in_flight}",
            f"get_httpx_client() beside httpx's own transport, {in_flight} in flight",
            {
                "ours": partial(throughput, our_client, url, many, in_flight),
                "own": partial(throughput, own_transport, url, few, in_flight),
            },
            (ratio("ours", "own", Aim(15, at_most=False) if in_flight == 256 else None),),
            unit="requests/s",
            per_unit=1,
        )
    yield Row(
        "connections",
        "connections opened per request in flight, 64 in flight, 2 000 requests",
        {
            "session": partial(opened, our_session, url, 2000, 64),
            "httpx": partial(opened, our_client, url, 2000, 64),
            "force_close": partial(opened, closing_session, url, 2000, 64),
        },
        (
            Reading("session", lambda values: values["session"], Aim(1, must=1)),
            Reading("httpx", lambda values: values["httpx"], Aim(1, must=1)),
            Reading("force_close", lambda values: values["force_close"]),
        ),
        unit="per request in flight",
        per_unit=1,
    )
    yield Row(
        "many",
        f"errors of get_httpx_client() with {MANY} requests at once",
        {"errors": partial(errors, our_client, url, MANY)},
        (Reading("errors", lambda values: values["errors"], Aim(0, must=0)),),
        unit="",
        per_unit=1,
    )


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("_answering_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}/"
        server.stdin.close()


def main() -> int:
    """Measure what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer pairs and fewer requests, only for a look"
    )
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these, e.g. httpx-256,many")
    options = parser.parse_args()
    if not ensure_descriptors(MANY):  # for the server too, which inherits the limit
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        print(f"{MANY} connections need more descriptors than the limits {limits} allow", file=sys.stderr)
        return 2
    pairs = 3 if options.quick else 11
    print(
        f"{platform.python_implementation()} {platform.python_version()}, aiohttp {version('aiohttp')}, "
        f"httpx {version('httpx')}, uvloop {version('uvloop')}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; medians of {pairs} alternating pairs",
        flush=True,
    )
    failures: list[str] = []
    with _server() as url:
        rows = list(all_rows(url, options.quick))
        chosen = options.rows.split(",") if options.rows else [row.name for row in rows]
        for row in rows:
            if row.name in chosen:
                failures += _show(row, pairs)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _show(row: Row, pairs: int) -> list[str]:
    """Measure and print one row; return what failed in it."""
    print(f"\n{row.name}: {row.title}", flush=True)
    try:
        results = measure(row, pairs, in_child)
    except MeasurementError as error:
        print(f"  not measured: {error}", flush=True)
        return [f"{row.name}: not measured"]
    measured = list(lines(row, results))
    for line in measured:
        print(_formatted(line))
    print(f"  medians: {medians(row, results)}", flush=True)
    return [
        f"{row.name}: {line.reading.label} is {number(line.spread.median)}, {line.reading.aim}"
        for line in measured
        if line.verdict == "FAILED"
    ]


def _formatted(line: Line) -> str:
    spread, aim = line.spread, line.reading.aim
    quartiles, extremes = ("-".join(map(number, pair)) for pair in (spread.quartiles, spread.extremes))
    shown = (line.reading.label, number(spread.median), quartiles, extremes, str(aim or ""), line.verdict)
    return "  {:<16}{:>8}   quartiles {:<14} min-max {:<14} {:<16}{}".format(*shown).rstrip()


if __name__ == "__main__":
    sys.exit(main())
