"""Peers from the package index, each as a contender: what else runs coroutines for synchronous code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, TypeVar

import uvloop

import _figures as figures
from _contenders import PATIENCE_S, Contender, Threaded, Work
from _table import Absent

C = TypeVar("C", bound=Contender)


def if_installed(package: str, make: Callable[[], C]) -> C | Absent:
    """Return what *make* makes, if *package* is there to be imported."""
    if importlib.util.find_spec(package) is None:
        return Absent(f"{package} is not installed: pip install {package}")
    return make()


class Portal(Threaded):
    """anyio's blocking portal, on uvloop; a future comes of each call."""

    def start(self) -> None:
        from anyio.from_thread import BlockingPortal, start_blocking_portal

        self._context: AbstractContextManager[BlockingPortal] = start_blocking_portal(
            backend="asyncio", backend_options={"use_uvloop": True}
        )
        self._portal = self._context.__enter__()
        self._launched: list[list[concurrent.futures.Future[Any]]] = []

    def launch(self, work: Work, calls: int) -> None:
        start = self._portal.start_task_soon
        self._launched.append([start(work) for _ in range(calls)])

    def collect(self, count: int) -> list[Any]:
        return [future.result(PATIENCE_S) for future in self._launched.pop()[:count]]

    def value(self, work: Work) -> Any:
        return self._portal.call(work)

    def stop(self) -> None:
        self._portal.call(self._portal.stop, True)
        self._context.__exit__(None, None, None)


class Pool(Threaded):
    """``concurrent.futures``: threads without a loop, and in each call a coroutine that never waits."""

    def start(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self._launched: list[list[concurrent.futures.Future[Any]]] = []

    def launch(self, work: Work, calls: int) -> None:
        submit = self._pool.submit
        self._launched.append([submit(_drive, work) for _ in range(calls)])

    def collect(self, count: int) -> list[Any]:
        return [future.result(PATIENCE_S) for future in self._launched.pop()[:count]]

    def value(self, work: Work) -> Any:
        return self._pool.submit(_drive, work).result(PATIENCE_S)

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _drive(work: Work) -> Any:
    try:
        work().send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


class Jobs(Threaded):
    """An aiojobs scheduler without limits, on a uvloop in the main thread: like raw it crosses no thread."""

    def start(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._scheduler = self._run(self._made())
        self._launched: list[list[Any]] = []

    async def _made(self) -> Any:
        return import_module("aiojobs").Scheduler(limit=None)

    def launch(self, work: Work, calls: int) -> None:
        self._launched.append(self._run(self._spawned(work, calls)))

    async def _spawned(self, work: Work, calls: int) -> list[Any]:
        spawn = self._scheduler.spawn
        return [await spawn(work()) for _ in range(calls)]

    def collect(self, count: int) -> list[Any]:
        values: list[Any] = self._run(_waited(self._launched.pop()[:count]))
        return values

    def value(self, work: Work) -> Any:
        return self._run(self._once(work))

    async def _once(self, work: Work) -> Any:
        return await (await self._scheduler.spawn(work())).wait()

    def settle(self, running: threading.Event) -> None:
        self._run(asyncio.sleep(0))
        assert running.is_set()

    def stop(self) -> None:
        self._run(self._scheduler.close())
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)


async def _waited(jobs: list[Any]) -> list[Any]:
    return [await job.wait() for job in jobs]


class RayActor(Threaded):
    """An asynchronous actor of Ray's, in a process of its own: what it is given is sent there."""

    def start(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._ray = ray = import_module("ray")
        self._directory = tempfile.mkdtemp(prefix="ray-")
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=self._directory,
        )
        self._actor = ray.remote(max_concurrency=20_000, num_cpus=0)(_actor_class()).remote()
        self._launched: list[list[Any]] = []

    def launch(self, work: Work, calls: int) -> None:
        method = self._method(work)
        self._launched.append([method.remote() for _ in range(calls)])

    def collect(self, count: int) -> list[Any]:
        values: list[Any] = self._ray.get(self._launched.pop()[:count], timeout=PATIENCE_S)
        return values

    def value(self, work: Work) -> Any:
        return self._ray.get(self._method(work).remote(), timeout=PATIENCE_S)

    def settle(self, _running: threading.Event) -> None:
        self.value(figures.nothing)  # an actor starts its calls in the order in which they came

    def stop(self) -> None:
        self._ray.shutdown()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _method(self, work: Work) -> Any:
        return self._actor.nothing if work is figures.nothing else self._actor.park


def _actor_class() -> type:
    # Made here: a class of this module would be sent by its name, which the other process cannot import.
    class Actor:
        async def nothing(self) -> int:
            return 1

        async def park(self) -> None:
            await asyncio.sleep(3_600.0)

    return Actor
