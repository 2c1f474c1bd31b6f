"""Real runs of what is simulated, on a Ray of their own, and what they say of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray

from areal_core._simulation.loopback import Versions, compute
from areal_core.config import InferenceEngineConfig
from areal_core.distributed import DistributedWorkflowExecutor
from areal_core.embedded import EmbeddedServer
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.simulation import Costs, Scenario
from areal_core.types import GenerationHyperparameters, RolloutWorkflow
from areal_core.workflows import SingleTurnWorkflow

TOKENS = 64
"""Of a trajectory of an episode that asks no server; and what `calibrate` has."""

_ITEM = {"input_ids": [1, 2, 3]}
_PATIENCE_S = 60.0
_LOOK_S = 0.02
_MANY = 256
"""Episodes at once, for what an episode takes where exchanges are large."""


class Takes(RolloutWorkflow):
    """Computes, takes its time, and yields a trajectory that is as old as its start: it has no versions."""

    def __init__(self, compute_s: float, seconds: float) -> None:
        self._compute_s = compute_s
        self._seconds = seconds

    async def arun_episode(self, engine: Any, data: Any) -> dict[str, Any]:
        """Play one episode."""
        compute(self._compute_s)
        if self._seconds:
            await asyncio.sleep(self._seconds)
        ones = np.ones((1, TOKENS), np.int64)
        return {
            "input_ids": ones,
            "attention_mask": ones,
            "loss_mask": ones,
            "logprobs": np.full((1, TOKENS), -0.5, np.float32),
            "rewards": np.array([1.0], np.float32),
        }


@dataclass(frozen=True)
class Measured:
    """What a real run came to."""

    trajectories_per_s: float
    staleness_mean: float


def play(scenario: Scenario) -> Measured:
    """Do for real what *scenario* says: as far as it goes, which is what the set-ups have."""
    with _cluster():
        if scenario.servers:
            return _play_with_servers(scenario)
        engine, workflow = Versions(), Takes(scenario.compute_s, scenario.tool_s)
        with _executor(scenario, engine, Versions) as executor:
            return _rate(scenario, executor, engine, workflow)


def _play_with_servers(scenario: Scenario) -> Measured:
    config = scenario.config
    gconfig = GenerationHyperparameters(max_new_tokens=int(scenario.tokens), ignore_eos=True)
    workflow = SingleTurnWorkflow(_any_reply, gconfig, reward_in="loop")
    with contextlib.ExitStack() as stack:
        servers = [
            EmbeddedServer(
                ms_per_token=1e3 * scenario.token_s,
                sigma=scenario.pace_sigma,
                cap=scenario.pace_cap,
                slots=scenario.server_slots or 0,
                seed=number,
            )
            for number in range(scenario.servers)
        ]
        addresses = [stack.enter_context(server).addr for server in servers]
        engine = stack.enter_context(RemoteInfEngine(config, backend="sglang"))
        engine.initialize(addresses)

        def make_engine() -> RemoteInfEngine:
            made = RemoteInfEngine(config, backend="sglang", follows=True)
            made.initialize(addresses)
            return made

        with _executor(scenario, engine, make_engine) as executor:
            return _rate(scenario, executor, engine, workflow)


def _any_reply(prompt: list[int], reply: list[int], item: Any) -> float:
    return 1.0


@contextlib.contextmanager
def _executor(
    scenario: Scenario, engine: Any, make_engine: Callable[[], Any]
) -> Iterator[DistributedWorkflowExecutor]:
    with DistributedWorkflowExecutor(
        replace(scenario.config, progress=False),
        engine,
        make_engine,
        workers=scenario.workers,
        slots_per_worker=scenario.slots_per_worker,
        ray_options={"num_cpus": 0},
    ) as executor:
        yield executor


def _rate(
    scenario: Scenario, executor: DistributedWorkflowExecutor, engine: Any, workflow: RolloutWorkflow
) -> Measured:
    """Train as the trainer of *scenario* does, for as long, and return how fast trajectories came."""
    items = ({"input_ids": [1, 2, number]} for number in range(1 << 30))
    size = scenario.config.consumer_batch_size
    loader = ([next(items) for _ in range(size)] for _ in range(1 << 30))
    came, version = 0, 0
    began = time.perf_counter()
    begin = began + scenario.warm_up_s
    with _killed(executor, scenario.worker_deaths_s):
        while (now := time.perf_counter()) < begin + scenario.measured_s:
            if came == 0 and now >= begin:
                begin = now
            batch = executor.prepare_batch(loader, workflow)
            came += len(batch) * (time.perf_counter() >= begin)
            time.sleep(scenario.train_s)
            version += 1
            engine.set_version(version)
            executor.on_version_changed()
    taken_s = time.perf_counter() - begin
    return Measured(came / taken_s, executor.report().staleness_mean)


@contextlib.contextmanager
def _killed(executor: DistributedWorkflowExecutor, deaths_s: tuple[float, ...]) -> Iterator[None]:
    """Kill the worker that has lived longest at each of these times, from now on."""
    is_over = threading.Event()
    began = time.perf_counter()

    def kill() -> None:
        for when in deaths_s:
            if is_over.wait(max(0.0, began + when - time.perf_counter())):
                return
            with contextlib.suppress(Exception):  # another has just died
                os.kill(executor.run_everywhere(_pid)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        is_over.set()
        killer.join()


async def _pid() -> int:
    return os.getpid()


async def _cpu_here() -> float:
    return _cpu()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class OfRay:
    """What Ray takes here."""

    costs: Costs
    worker_start_s: float
    worker_death_seen_s: float


def measure_ray(costs: Costs, seconds: float) -> OfRay:
    """Return *costs* with what Ray takes, measured for so long, and how workers come and go."""
    with _cluster():
        few = _of_episodes(1, seconds)
    with _cluster():
        many = _of_episodes(_MANY, seconds)
    with _cluster():
        return OfRay(_with_ray(costs, few, many), *_deaths())


@dataclass(frozen=True)
class _Taken:
    """What an instant episode takes, in seconds."""

    driver_s: float
    worker_s: float
    passed_s: float
    """Of time rather than of processors."""
    in_exchange: float
    """How many episodes an exchange had."""


def _with_ray(costs: Costs, few: _Taken, many: _Taken) -> Costs:
    """Return *costs* with what was measured beyond them.

    Of one episode in an exchange the rest is that exchange's, of many it is theirs.
    """
    mine = costs.driver_exchange_s + costs.driver_episode_s + costs.driver_rollout_s
    its = costs.worker_exchange_s + costs.worker_episode_s
    ray_driver_s, ray_worker_s = max(0.0, few.driver_s - mine), max(0.0, few.worker_s - its)
    exchanges_s = (costs.driver_exchange_s + ray_driver_s) / many.in_exchange
    theirs_s = (costs.worker_exchange_s + ray_worker_s) / many.in_exchange
    return replace(
        costs,
        ray_driver_s=ray_driver_s,
        ray_worker_s=ray_worker_s,
        driver_episode_s=max(0.0, many.driver_s - costs.driver_rollout_s - exchanges_s),
        worker_episode_s=max(0.0, many.worker_s - theirs_s),
        transport_s=max(0.0, (few.passed_s - few.driver_s - few.worker_s) / 2),
    )


def _of_episodes(at_once: int, seconds: float) -> _Taken:
    """Play instant episodes, so many at once, and return what each takes."""
    batch = max(16, at_once)
    config = InferenceEngineConfig(
        consumer_batch_size=batch, max_head_offpolicyness=3, max_concurrent_rollouts=at_once, progress=False
    )
    scenario = Scenario(config=config, workers=1, slots_per_worker=at_once, tokens=0.0)
    engine, workflow, loader = Versions(), Takes(0.0, 0.0), [[_ITEM] * batch]
    with _executor(scenario, engine, Versions) as executor:
        reports = _counted(executor)
        for _ in range(20):
            _step(executor, engine, loader, workflow)
        [there], here = executor.run_everywhere(_cpu_here), _cpu()
        began, batches, before = time.perf_counter(), 0, reports[0]
        while time.perf_counter() - began < seconds:
            _step(executor, engine, loader, workflow)
            batches += 1
        count, passed_s = batch * batches, time.perf_counter() - began
        here, there = _cpu() - here, executor.run_everywhere(_cpu_here)[0] - there
        return _Taken(here / count, there / count, passed_s / count, count / max(1, reports[0] - before))


def _counted(executor: DistributedWorkflowExecutor) -> list[int]:
    """Return a list of one number, which counts the reports of workers that bring something."""
    desk = executor._desk()
    count, reported = [0], desk.reported

    def counted(worker: int, report: Any) -> None:
        count[0] += bool(report.ended)
        reported(worker, report)

    desk.reported = counted  # type: ignore[method-assign]
    return count


def _step(executor: DistributedWorkflowExecutor, engine: Versions, loader: Any, workflow: Any) -> None:
    executor.prepare_batch(loader, workflow)
    engine.version += 1
    executor.on_version_changed()


def _deaths() -> tuple[float, float]:
    """Kill workers; return how long it took to start others, and to see that they were dead: medians."""
    config = InferenceEngineConfig(consumer_batch_size=16, max_head_offpolicyness=3, progress=False)
    scenario = Scenario(config=config, workers=2, slots_per_worker=8)
    starts, seen = [], []
    with _executor(scenario, Versions(), Versions) as executor:
        for _ in range(3):
            _play_at_each(executor)
            before = {worker.number for worker in executor.workers()}
            oldest = min(before)
            killed_at = time.perf_counter()
            os.kill(executor.run_everywhere(_pid)[0], signal.SIGKILL)
            seen_at = _when(partial(_lacks, executor, oldest))
            back_at = _when(partial(_has_others, executor, before))
            seen.append(seen_at - killed_at)
            starts.append(back_at - seen_at)
    return sorted(starts)[1], sorted(seen)[1]


def _play_at_each(executor: DistributedWorkflowExecutor) -> None:
    """Have each worker bring an episode: one that dies before that is replaced after a pause."""
    while len(_numbers(executor)) < 2 or not all(worker.ended for worker in executor.workers()):
        executor.rollout_batch([_ITEM] * 16, Takes(0.0, 0.0))


def _lacks(executor: DistributedWorkflowExecutor, worker: int) -> bool:
    return worker not in _numbers(executor)


def _has_others(executor: DistributedWorkflowExecutor, than: set[int]) -> bool:
    return bool(_numbers(executor) - than)


def _numbers(executor: DistributedWorkflowExecutor) -> set[int]:
    return {worker.number for worker in executor.workers()}


def _when(has_happened: Callable[[], object]) -> float:
    """Wait until it has, and return when that was. Raises TimeoutError."""
    deadline = time.perf_counter() + _PATIENCE_S
    while not has_happened():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"no worker died or came within {_PATIENCE_S:g} s")
        time.sleep(_LOOK_S)
    return time.perf_counter()


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
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
