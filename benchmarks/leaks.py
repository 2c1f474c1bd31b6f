"""Show that nothing is left behind by cycle after cycle of runners, loops, threads and clients.

Counts objects by type, descriptors and threads after 100 and again after 1 000 cycles, each subject in a
process of its own. Ends with 1 when more grew than may: no descriptor and no thread, at most 5 objects of
a type, at most 50 in all.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from _census import Census, complaints, cycle_twice
from _children import MeasurementError, in_child
from areal_core.async_task_runner import AsyncTaskRunner

from areal_core import workflow_context
from areal_core.embedded import EmbeddedServer

LARGEST = 10
"""How many of the commonest types are shown besides those whose number changed."""


def main() -> int:
    """Count what was asked for and return the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--cycles", type=int, nargs=2, default=(100, 1_000), metavar="COUNT", help="after how many to count"
    )
    first, second = options.parse_args().cycles
    bad = [name for name, subject in SUBJECTS.items() if not _show(name, subject, first, second)]
    print(f"FAILED: {', '.join(bad)}" if bad else "nothing grew by more than may be")
    return 1 if bad else 0


Subject = Callable[[int, int], tuple[Census, Census]]
"""Takes two numbers of cycles and returns the census after each."""


def runner_restarts(first: int, second: int) -> tuple[Census, Census]:
    """Initialize and destroy one runner again and again in one thread, a task each time."""
    runner = AsyncTaskRunner[None](max_queue_size=8)

    def cycle() -> None:
        runner.initialize()
        runner.submit(asyncio.sleep, 0)
        runner.wait(1)
        runner.destroy()

    return cycle_twice(cycle, first, second)


def runner_restarts_with_clients(first: int, second: int) -> tuple[Census, Census]:
    """Have the tasks of such a runner use the clients, which go with its loop."""
    with EmbeddedServer() as server:
        runner = AsyncTaskRunner[None](max_queue_size=8)
        url = f"http://{server.addr}/health"

        def cycle() -> None:
            with runner:
                runner.run(_use_clients, url)

        return cycle_twice(cycle, first, second)


def loops_with_clients(first: int, second: int) -> tuple[Census, Census]:
    """Call asyncio.run again and again in one thread and use the clients."""
    with EmbeddedServer() as server:
        url = f"http://{server.addr}/health"
        return cycle_twice(lambda: asyncio.run(_use_clients(url)), first, second)


def threads_with_clients(first: int, second: int) -> tuple[Census, Census]:
    """Start thread after thread, each with a loop of its own that uses the clients."""
    with EmbeddedServer() as server:
        url = f"http://{server.addr}/health"

        def cycle() -> None:
            thread = threading.Thread(target=lambda: asyncio.run(_use_clients(url)))
            thread.start()
            thread.join()

        return cycle_twice(cycle, first, second)


SUBJECTS: dict[str, Subject] = {
    "destroy/initialize in one thread": runner_restarts,
    "destroy/initialize, tasks with the clients": runner_restarts_with_clients,
    "asyncio.run with the clients": loops_with_clients,
    "short threads with the clients": threads_with_clients,
}


async def _use_clients(url: str) -> None:
    session = await workflow_context.get_aiohttp_session()
    async with session.get(url) as response:
        response.raise_for_status()
    client = await workflow_context.get_httpx_client()
    (await client.get(url)).raise_for_status()


def _show(name: str, subject: Subject, first: int, second: int) -> bool:
    """Count and print one subject; return whether all is well."""
    begin = time.perf_counter()
    try:
        before, after = in_child(partial(subject, first, second))
    except MeasurementError as error:
        print(f"{name}: not counted: {error}\n", flush=True)
        return False
    print(f"{name}, {time.perf_counter() - begin:.1f} s")
    print(_line("", f"after {first:,}", f"after {second:,}", "change"))
    for what in ("objects", "descriptors", "threads"):
        print(_counted(what, getattr(before, what), getattr(after, what)))
    for kind in _shown(before, after):
        print(_counted(f"  {kind}", before.types[kind], after.types[kind]))
    found = list(complaints(before, after))
    print("".join(f"  FAILED: {complaint}\n" for complaint in found), flush=True)
    return not found


def _shown(before: Census, after: Census) -> list[str]:
    common = {kind for kind, _ in after.types.most_common(LARGEST)}
    changed = {kind for kind in before.types | after.types if before.types[kind] != after.types[kind]}
    return sorted(common | changed, key=lambda kind: -after.types[kind])


def _counted(what: str, before: int, after: int) -> str:
    return _line(what, f"{before:,}", f"{after:,}", f"{after - before:+d}" if after != before else "")


def _line(what: str, before: str, after: str, change: str) -> str:
    return f"  {what:<60}{before:>12}{after:>12}{change:>8}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
