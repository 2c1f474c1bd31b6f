"""The rows of the HTTP clients, against a server in a process of its own that answers at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial

import _client_figures as clients
from _scale import COUNTED, Scale
from _table import MICROSECONDS, Absent, Aim, Figure, Row, Unit, part, plain, ratio

MANY = 4096
RATE = Unit("requests/s", is_rate=True)


def rows(scale: Scale, url: str) -> Iterator[Row]:
    """Yield the rows, for the server at *url*."""
    for in_flight in (64, 256):
        yield _session(url, scale.of(4096), in_flight)
        yield _httpx(url, scale.of(4096), in_flight)
    yield _connections(url, 2000)
    yield _many(url)


def _session(url: str, count: int, in_flight: int) -> Row:
    taken = {"bare": clients.bare_session, "ours": clients.our_session}
    return Row(
        f"session-{in_flight}",
        f"requests by get_aiohttp_session(), beside a bare session, {in_flight} in flight",
        {
            name: partial(clients.requests, client, url, count, in_flight, warm=True)
            for name, client in taken.items()
        },
        (
            ratio("ours", "bare", Aim(0.95, at_most=False), of="rate", label="ours / bare, requests/s"),
            ratio("ours", "bare", Aim(1.05), of="cpu", label="ours / bare, CPU of a request"),
        ),
        RATE,
        {"cpu": MICROSECONDS},
        rounds=9,
    )


def _httpx(url: str, count: int, in_flight: int) -> Row:
    def cold(client: clients.Client) -> Figure:
        return partial(clients.requests, client, url, count, in_flight, warm=False)

    aim = Aim(15, at_most=False) if in_flight == 256 else None
    # Not with 256: httpx answers no more than those in its seconds, and has paid for them and others.
    cpu = (
        ratio("httpx", "ours", of="cpu", label="httpx / ours, CPU of a request"),
        ratio("httpx2", "ours", of="cpu", label="httpx2 / ours, CPU of a request"),
    )
    is_there = importlib.util.find_spec("httpx2") is not None
    return Row(
        f"httpx-{in_flight}",
        f"the first 2 s of get_httpx_client(), beside httpx and httpx2 by themselves, {in_flight} in flight",
        {
            "ours": cold(clients.our_client),
            "httpx": cold(clients.httpx_itself),
            "httpx2": cold(clients.httpx2_itself) if is_there else Absent("httpx2 is not installed"),
        },
        (
            ratio("ours", "httpx", aim, of="rate", label="ours / httpx, requests/s"),
            ratio("ours", "httpx2", of="rate", label="ours / httpx2, requests/s"),
            *(() if in_flight == 256 else cpu),
            plain(part("ours", "cpu"), label="ours, CPU of a request, us", scale=1e-6),
        ),
        RATE,
        {"cpu": MICROSECONDS},
    )


def _connections(url: str, count: int) -> Row:
    taken = {
        "session": clients.our_session,
        "httpx": clients.our_client,
        "force_close": clients.closing_session,
    }
    return Row(
        "connections",
        f"connections opened per request in flight, 64 in flight, {count:,} requests",
        {name: partial(clients.opened, client, url, count, 64) for name, client in taken.items()},
        (
            plain("session", Aim(1, must=1), label="our session"),
            plain("httpx", Aim(1, must=1), label="our httpx client"),
            plain("force_close"),
        ),
        Unit("per request in flight"),
        rounds=COUNTED,
    )


def _many(url: str) -> Row:
    return Row(
        "many",
        f"errors of get_httpx_client() with {MANY} requests at once",
        {"errors": partial(clients.errors, clients.our_client, url, MANY)},
        (plain("errors", Aim(0, must=0)),),
        Unit(""),
        rounds=COUNTED,
    )
