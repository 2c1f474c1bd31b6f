"""Show that nothing is left behind by cycle after cycle of runners, loops, threads and clients.

Counts objects by type, descriptors and threads after 100 and again after 1 000 cycles, each subject in a
process of its own. Ends with 1 when more grew than may: no descriptor and no thread, at most 5 objects of
a type, at most 50 in all.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from _census import Census, complaints, cycle_twice
from _children import MeasurementError, in_child
from areal_core import workflow_context
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.embedded import EmbeddedServer

LARGEST = 10
"""How many of the commonest types are shown besides those whose number changed."""

LOOPS = ("asyncio", "uvloop")

MakeLoop = Callable[[], asyncio.AbstractEventLoop]


def main() -> int:
    """Count what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cycles", type=int, nargs=2, default=(100, 1_000), metavar="COUNT", help="after how many to count"
    )
    parser.add_argument("--loop", choices=[*LOOPS, "both"], default="both", help="on which event loops")
    options = parser.parse_args()
    loops = LOOPS if options.loop == "both" else (options.loop,)
    bad = [title for title, measure in _subjects(loops, *options.cycles) if not _show(title, measure)]
    print(f"FAILED: {', '.join(bad)}" if bad else "nothing grew by more than may be")
    return 1 if bad else 0


def _subjects(loops: Iterable[str], first: int, second: int) -> Iterator[tuple[str, Measure]]:
    for loop in loops:
        make_loop = importlib.import_module(loop).new_event_loop
        for title, cycles in SUBJECTS.items():
            yield f"{title} ({loop})", partial(_count, cycles, make_loop, first, second)


Cycle = Callable[[], object]
Measure = Callable[[], tuple[Census, Census]]


@contextmanager
def runner_restarts(make_loop: MakeLoop) -> Iterator[Cycle]:
    """Initialize and destroy one runner again and again in one thread, a task each time."""
    runner = AsyncTaskRunner[None](max_queue_size=8, loop_factory=make_loop)

    def cycle() -> None:
        runner.initialize()
        runner.submit(asyncio.sleep, 0)
        runner.wait(1, timeout=60.0)
        runner.destroy()

    yield cycle


@contextmanager
def runner_restarts_with_clients(make_loop: MakeLoop) -> Iterator[Cycle]:
    """Have the tasks of such a runner use the clients, which go with its loop."""
    runner = AsyncTaskRunner[None](max_queue_size=8, loop_factory=make_loop)

    def cycle() -> None:
        with runner:
            runner.run(_use_clients, url)

    with _health_url() as url:
        yield cycle


@contextmanager
def loops_with_clients(make_loop: MakeLoop) -> Iterator[Cycle]:
    """Do what asyncio.run does again and again in one thread, and use the clients."""
    with _health_url() as url:
        yield lambda: _run_loop(make_loop, url)


@contextmanager
def threads_with_clients(make_loop: MakeLoop) -> Iterator[Cycle]:
    """Start thread after thread, each with a loop of its own that uses the clients."""

    def cycle() -> None:
        thread = threading.Thread(target=_run_loop, args=(make_loop, url))
        thread.start()
        thread.join()

    with _health_url() as url:
        yield cycle


SUBJECTS: dict[str, Callable[[MakeLoop], AbstractContextManager[Cycle]]] = {
    "destroy/initialize in one thread": runner_restarts,
    "destroy/initialize, tasks with the clients": runner_restarts_with_clients,
    "asyncio.run with the clients": loops_with_clients,
    "short threads with the clients": threads_with_clients,
}


def _count(
    subject: Callable[[MakeLoop], AbstractContextManager[Cycle]], make_loop: MakeLoop, first: int, second: int
) -> tuple[Census, Census]:
    with subject(make_loop) as cycle:
        return cycle_twice(cycle, first, second)


@contextmanager
def _health_url() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield f"http://{server.addr}/health"


def _run_loop(make_loop: MakeLoop, url: str) -> None:
    with asyncio.Runner(loop_factory=make_loop) as loop:
        loop.run(_use_clients(url))


async def _use_clients(url: str) -> None:
    session = await workflow_context.get_aiohttp_session()
    async with session.get(url) as response:
        response.raise_for_status()
    client = await workflow_context.get_httpx_client()
    (await client.get(url)).raise_for_status()


def _show(title: str, measure: Measure) -> bool:
    """Count and print one subject; return whether all is well."""
    begin = time.perf_counter()
    try:
        before, after = in_child(measure)
    except MeasurementError as error:
        print(f"{title}: not counted: {error}\n", flush=True)
        return False
    print(f"{title}, {time.perf_counter() - begin:.1f} s")
    print(_line("", "before", "after", "change"))
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
