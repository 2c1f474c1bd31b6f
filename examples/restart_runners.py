"""Restart runners in one thread: the HTTP clients follow the loop by themselves.

    python examples/restart_runners.py            # 20 lives
    python examples/restart_runners.py --quick    # 4 lives

A trainer may stop its runner and start another, as often as it likes. Each has a loop of its own, and
each loop its own aiohttp session and httpx client: made when a task first asks, the same for all who ask,
closed with the loop. Nobody hands them around and nobody closes them. The connections that the server
accepted are the proof: as many in each life as there were tasks at once, for ten times the requests.
"""

from __future__ import annotations

import argparse
import threading
from typing import NamedTuple

import aiohttp
import httpx

from areal_core import AsyncTaskRunner, workflow_context
from areal_core.embedded import EmbeddedServer

AT_ONCE = 8
ROUNDS = 5


class Clients(NamedTuple):
    """What one task was given."""

    session: aiohttp.ClientSession
    httpx_client: httpx.AsyncClient


async def ask_twice(url: str, number: int) -> Clients:
    """Ask the server once with each client, and return both."""
    body = {"text": f"question {number}", "sampling_params": {"max_new_tokens": 4}}
    session = await workflow_context.get_aiohttp_session()
    async with session.post(f"{url}/generate", json=body) as response:
        response.raise_for_status()
        await response.read()
    client = await workflow_context.get_httpx_client()
    (await client.post(f"{url}/generate", json=body)).raise_for_status()
    return Clients(session, client)


def live_once(url: str) -> list[Clients]:
    """Start a runner, have it run some rounds of tasks, and stop it; return what the tasks were given."""
    given: list[Clients] = []
    with AsyncTaskRunner[Clients](max_queue_size=AT_ONCE) as runner:
        for _ in range(ROUNDS):
            for number in range(AT_ONCE):
                runner.submit(ask_twice, url, number)
            given += [clients for clients in runner.wait(AT_ONCE, timeout=30.0) if clients]
    return given


def main() -> None:
    """Live several times, and print what each life was given."""
    parser = argparse.ArgumentParser(description="Restart runners in one thread.")
    parser.add_argument("--quick", action="store_true", help="4 lives instead of 20")
    lives = 4 if parser.parse_args().quick else 20

    sessions: set[aiohttp.ClientSession] = set()
    accepted = 0
    print("life  requests  sessions  httpx clients  closed after it  connections accepted")
    with EmbeddedServer(ms_per_token=1) as server:
        for life in range(1, lives + 1):
            given = live_once(server.url)
            session = {clients.session for clients in given}
            client = {clients.httpx_client for clients in given}
            closed = all(one.closed for one in session) and all(one.is_closed for one in client)
            sessions |= session
            before, accepted = accepted, server.stats().connections - life  # stats() takes one each time
            print(
                f"{life:4}  {2 * len(given):8}  {len(session):8}  {len(client):13}  "
                f"{'yes' if closed else 'NO':>15}  {accepted - before:20}"
            )
        answered = server.stats().completed
    print(
        f"\n{lives} runners in one thread were given {len(sessions)} sessions, each its own: "
        f"{answered:,} answers came over {accepted} connections.\n"
        f"Threads that run now: {threading.active_count()}."
    )


if __name__ == "__main__":
    main()
