"""What is measured of rollouts that are played by workers on Ray. Each figure starts a Ray of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ray

from _contenders import PATIENCE_S
from _executor_contenders import ITEM, trajectory
from areal_core._simulation.loopback import Versions
from areal_core.config import InferenceEngineConfig
from areal_core.distributed import DistributedWorkflowExecutor
from areal_core.types import RolloutWorkflow

WARM = 500
MOST_CALLS = 20_000


class Sleeps(RolloutWorkflow):
    """Takes so many seconds, and yields a trajectory of 64 tokens."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def arun_episode(self, engine: Any, data: Any) -> dict[str, Any]:
        """Play one episode."""
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return trajectory(engine.get_version())


class _Playing:
    """The same, behind an async actor that is called once per episode."""

    def __init__(self) -> None:
        self._engine = Versions()
        self._workflow = Sleeps(0.0)

    async def play(self, data: Any) -> dict[str, Any]:
        return await self._workflow.arun_episode(self._engine, data)


def called(count: int) -> float:
    """Return the seconds per instant episode of an async actor that is called once for each."""
    with _ray():
        actor: Any = ray.remote(max_concurrency=MOST_CALLS, num_cpus=0)(_Playing).remote()
        ray.get([actor.play.remote(ITEM) for _ in range(WARM)], timeout=PATIENCE_S)
        began = time.perf_counter()
        ray.get([actor.play.remote(ITEM) for _ in range(count)], timeout=PATIENCE_S)
        return (time.perf_counter() - began) / count


def leased(count: int) -> dict[str, float]:
    """Return the seconds per instant episode of the executor with one worker, and the driver's CPU of it."""
    with _executor(1, slots=256) as executor:
        _play(executor, WARM, 0.0)
        cpu = _cpu()
        took = _play(executor, count, 0.0)
        return {"time": took / count, "driver cpu": (_cpu() - cpu) / count}


def carried(workers: int, seconds: float, slots: int, episode_s: float) -> dict[str, float]:
    """Return how many episodes of *episode_s* seconds so many workers end per second, each with *slots*.

    And the share of a core that the loop of one takes.
    """
    count = round(workers * slots * seconds / episode_s)
    with _executor(workers, slots) as executor:
        _play(executor, 4 * workers * slots, episode_s)
        began = executor.run_everywhere(_cpu_here)
        took = _play(executor, count, episode_s)
        busy = [
            after - before for before, after in zip(began, executor.run_everywhere(_cpu_here), strict=True)
        ]
        return {"rate": count / took, "core": max(busy) / took}


async def _cpu_here() -> float:
    return _cpu()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _play(executor: DistributedWorkflowExecutor, count: int, episode_s: float) -> float:
    workflow = Sleeps(episode_s)
    began = time.perf_counter()
    for _ in range(count):
        executor.submit(ITEM, workflow)
    found = executor.wait(count, timeout=PATIENCE_S)
    took = time.perf_counter() - began
    assert None not in found
    executor.give_back(count)
    return took


@contextlib.contextmanager
def _executor(workers: int, slots: int) -> Iterator[DistributedWorkflowExecutor]:
    config = InferenceEngineConfig(consumer_batch_size=1 << 20, on_stale="keep")
    with (
        _ray(),
        DistributedWorkflowExecutor(
            config,
            Versions(),
            Versions,
            workers=workers,
            slots_per_worker=slots,
            ray_options={"num_cpus": 0},
        ) as executor,
    ):
        yield executor


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    directory = tempfile.mkdtemp(prefix="ray-")
    ray.init(
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=directory,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)
