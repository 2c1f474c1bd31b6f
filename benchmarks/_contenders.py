"""Who is measured: the raw loop, run_coroutine_threadsafe, our runner, the published one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import cache, partial
from typing import Any, Protocol

import uvloop

from _published import RELEASE, WheelError, published_runner
from _table import Absent
from areal_core.async_task_runner import AsyncTaskRunner

Work = Callable[[], Coroutine[Any, Any, Any]]

BOUND = 1 << 20
"""``max_queue_size`` of both runners: never reached. Everything else is their default."""

PATIENCE_S = 120.0
"""After this a figure has failed; it measures nothing."""

HOUR_S = 3_600.0


class Contender(Protocol):
    """Runs coroutines. Each method is called from the main thread, and `start` first."""

    def start(self) -> None: ...

    def launch(self, work: Work, calls: int) -> None:
        """Hand over *calls* calls of *work*."""

    def collect(self, count: int) -> list[Any]:
        """Wait for *count* values: as many as the last launch was of that is not collected."""

    def value(self, work: Work) -> Any:
        """Run *work* once, whatever else is in flight, and return its value."""

    def settle(self, running: threading.Event) -> None:
        """Return when *running* is set, which launched work does."""

    def stop(self) -> None: ...


class RawLoop:
    """The limit: create_task and await on one uvloop, in the main thread.

    It calls the loop's own create_task: asyncio.create_task is a fifth slower and would flatter ratios.
    """

    def start(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._launched: list[list[asyncio.Task[Any]]] = []

    def launch(self, work: Work, calls: int) -> None:
        create_task = self._loop.create_task
        self._launched.append([create_task(work()) for _ in range(calls)])

    def collect(self, count: int) -> list[Any]:
        return self._loop.run_until_complete(_values(self._launched.pop()[:count]))

    def value(self, work: Work) -> Any:
        return self._loop.run_until_complete(_values([self._loop.create_task(work())]))[0]

    def settle(self, running: threading.Event) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))  # queued behind the first step of every task
        assert running.is_set()

    def stop(self) -> None:
        self._loop.close()


async def _values(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return [await task for task in tasks]


class Threaded:
    def settle(self, running: threading.Event) -> None:
        if not running.wait(PATIENCE_S):
            raise TimeoutError(f"not everything that was launched ran within {PATIENCE_S} s")


class BareThread(Threaded):
    """A thread that runs a uvloop, fed by run_coroutine_threadsafe: what one writes without a library."""

    def start(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._launched: list[list[concurrent.futures.Future[Any]]] = []
        running = threading.Event()
        self._loop.call_soon(running.set)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        running.wait()

    def launch(self, work: Work, calls: int) -> None:
        loop = self._loop
        self._launched.append([asyncio.run_coroutine_threadsafe(work(), loop) for _ in range(calls)])

    def collect(self, count: int) -> list[Any]:
        return [future.result(PATIENCE_S) for future in self._launched.pop()[:count]]

    def value(self, work: Work) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TaskRunner(Protocol):
    """What both runners have in common."""

    def initialize(self) -> None: ...

    def submit(self, async_fn: Callable[..., Awaitable[Any]], /, *, task_id: int) -> int: ...

    def wait(self, count: int, timeout: float | None = None) -> list[Any]: ...

    def destroy(self) -> None: ...


class RunnerContender(Threaded):
    """Either runner, each used in the same way: one submit loop, one ``wait(n)``."""

    def __init__(self, make: Callable[[], TaskRunner]) -> None:
        self._make = make
        self._next_id = 0

    def start(self) -> None:
        self._runner = self._make()
        self._runner.initialize()

    def launch(self, work: Work, calls: int) -> None:
        submit = self._runner.submit
        first, self._next_id = self._next_id, self._next_id + calls
        for task_id in range(first, self._next_id):
            submit(work, task_id=task_id)

    def collect(self, count: int) -> list[Any]:
        return self._runner.wait(count, timeout=PATIENCE_S)

    def value(self, work: Work) -> Any:
        task_id = self._next_id
        self._next_id += 1
        self._runner.submit(work, task_id=task_id)
        return self._runner.wait(1, timeout=PATIENCE_S)[0]

    def stop(self) -> None:
        self._runner.destroy()


RAW = RawLoop()
BARE_THREAD = BareThread()
OURS = RunnerContender(partial(AsyncTaskRunner, BOUND))
OURS_WITH_DEADLINE = RunnerContender(partial(AsyncTaskRunner, BOUND, task_timeout=HOUR_S))


@cache
def areal_runner() -> Contender | Absent:
    """Return the runner of the published wheel, or why it cannot be had."""
    try:
        return RunnerContender(partial(published_runner(), BOUND))
    except WheelError as error:
        return Absent(f"{RELEASE} cannot be had: {error}")
