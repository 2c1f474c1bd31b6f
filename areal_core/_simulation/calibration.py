"""What the library's own code costs on this machine: `calibrate`. It needs a few seconds, and no Ray.

The driver's part and a worker's are driven one after the other, each in exchanges of one episode and in large
ones: what is the same of both is an exchange's, the rest an episode's. What Ray takes is not measured here.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from areal_core._distributed.dispatcher import Dispatcher
from areal_core._distributed.leases import LeaseRules, Report
from areal_core._distributed.wire import Orders, encode
from areal_core._distributed.worker import Setup, Worker
from areal_core._executor.rollout import Episode, Lane, Plan, State
from areal_core._offload.stats import processors
from areal_core._record import EpisodeRecord
from areal_core._simulation.clock import VirtualClock
from areal_core._simulation.loopback import (
    Instant,
    LoopedExecutor,
    Nowhere,
    Pausing,
    Versions,
    pickled,
    picklers,
)
from areal_core._simulation.scenario import Costs
from areal_core.config import InferenceEngineConfig
from areal_core.types import GenerationHyperparameters, ModelRequest

_ITEM = {"input_ids": [1, 2, 3]}
_BATCH = 256
_SMALL, _LARGE = 1, 128
"""Episodes of an exchange."""
_FEW, _MANY = 2_000, 10_000
"""Episodes in exchanges of either size."""
_COMPUTES_S, _PAUSES_S = 0.5e-3, (0.03, 0.07)
"""What an episode does whose pause is measured. What goes on after it finds other things in the caches."""
_PAUSES = 2_560
_WORKERS = 2_000
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sorted(range(1000), key=str)"
_REQUESTS, _SHORT, _LONG, _MS_PER_TOKEN = 48, 8, 128, 8.0


def calibrate(costs: Costs | None = None) -> Costs:
    """Return what the code costs here. What Ray takes is that of *costs*; None: of the defaults.

    Nothing else should run meanwhile. It starts an embedded server, and keeps all other processors busy, as
    they are in a run: what two threads of one core do takes each of them longer.
    """
    with _busy_processors():
        rollout_s, driver_exchange_s, driver_episode_s = _driver()
        worker_exchange_s, worker_episode_s, worker_pause_s = _worker()
        stage_s, looking_s = _stage(), _looking_at_workers()
    request_s, token_s = _engine()
    return replace(
        Costs() if costs is None else costs,
        driver_rollout_s=rollout_s,
        driver_exchange_s=driver_exchange_s,
        driver_episode_s=driver_episode_s,
        driver_stage_s=stage_s,
        driver_worker_s=looking_s,
        worker_pause_s=worker_pause_s,
        worker_exchange_s=worker_exchange_s,
        worker_episode_s=worker_episode_s,
        worker_request_s=request_s,
        worker_token_s=token_s,
    )


@contextlib.contextmanager
def _busy_processors() -> Iterator[None]:
    """Keep all processors but one busy with Python code."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", _BUSY]) for _ in range(processors() - 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _split(small: float, large: float) -> tuple[float, float]:
    """Return what an exchange and an episode take, of what exchanges of both sizes do."""
    each = max(0.0, (large - small) / (_LARGE - _SMALL))
    return max(0.0, small - _SMALL * each), each


# -- the driver ------------------------------------------------------------------------------------


def _driver() -> tuple[float, float, float]:
    """Return what a rollout takes of the trainer's thread, and of the loop an exchange, and an episode."""
    _, small = _looped(_SMALL, _FEW)
    rollout_s, large = _looped(_LARGE, _MANY)
    return rollout_s, *_split(small, large)


def _looped(slots: int, count: int) -> tuple[float, float]:
    """Return what a rollout takes of the trainer's thread, and an exchange of the loop's."""
    config = InferenceEngineConfig(consumer_batch_size=_BATCH, max_head_offpolicyness=3, progress=False)
    engine, workflow, loader = Versions(), Instant(), [[_ITEM] * _BATCH]
    with LoopedExecutor(config, engine, slots) as executor:
        executor.join()
        link = executor.link
        assert link is not None

        def step() -> None:
            executor.prepare_batch(loader, workflow)
            engine.version += 1
            executor.on_version_changed()

        for _ in range(4):
            step()
        steps = max(1, count // _BATCH)
        began, mine = executor.runner.run(_loop_time), time.thread_time()
        exchanges, pretended_s = link.exchanges, link.pretended_s
        for _ in range(steps):
            step()
        mine = time.thread_time() - mine
        loop_s = executor.runner.run(_loop_time) - began - (link.pretended_s - pretended_s)
        return mine / (steps * _BATCH), loop_s / max(1, link.exchanges - exchanges)


async def _loop_time() -> float:
    return time.thread_time()


def _new_dispatcher(workers: int, slots: int) -> Dispatcher:
    def ignore(*_: object) -> None:
        pass

    rules = LeaseRules(slots=slots, most_ahead=0)
    made = Dispatcher(rules, Nowhere(), VirtualClock(), ignore, ignore, ignore)
    for number in range(workers):
        made.joined(number)
    return made


def _episodes(count: int) -> list[Episode]:
    plan = Plan(Instant(), None, 1, False, False)
    made = []
    for number in range(count):
        rollout = plan.rollout(number, _ITEM, Lane.BATCH)
        rollout.state = State.RUNNING
        rollout.episodes = (Episode(rollout, 0, EpisodeRecord()),)
        made.append(rollout.episodes[0])
    return made


def _stage() -> float:
    """Return what news of an episode take of the driver's loop."""
    count = _MANY
    dispatcher = _new_dispatcher(1, count)
    dispatcher.start(_episodes(count))
    dispatcher.go_on()
    stages = [(1 + number, 0, ("generating", "a server", 0.1, 1, 0)) for number in range(count)]
    data = pickled(Report((), (), stages))
    return _least(lambda: dispatcher.reported(0, pickle.loads(data))) / count


def _looking_at_workers() -> float:
    """Return what a worker takes of the driver's loop when something waits for room, and it has none."""
    dispatcher = _new_dispatcher(_WORKERS, 1)
    dispatcher.start(_episodes(_WORKERS + 1))
    dispatcher.go_on()
    return _least(dispatcher.go_on) / _WORKERS


def _least(work: Callable[[], object]) -> float:
    """Return the least of what *work* took, done several times: what disturbs it only adds."""
    found = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


# -- a worker --------------------------------------------------------------------------------------


def _worker() -> tuple[float, float, float]:
    """Return what an exchange, an episode, and a pause take of a worker."""
    dumps, loads = picklers()
    setup = Setup(Versions, _LARGE, False, True, None, 1.0, None)
    before = Worker.engine
    worker = Worker(dumps(setup), loads, dumps)
    worker.begin()
    try:
        instant, pausing = (
            dumps(Plan(workflow, None, 1, False, False))
            for workflow in (Instant(), Pausing(_COMPUTES_S, _PAUSES_S))
        )
        _exchanged(worker, instant, _LARGE, _LARGE, dumps)
        small = _exchanged(worker, instant, _SMALL, _FEW, dumps) / (_FEW // _SMALL)
        large = _exchanged(worker, instant, _LARGE, _MANY, dumps) / (_MANY // _LARGE)
        paused = _exchanged(worker, pausing, _LARGE, _PAUSES, dumps) / (_PAUSES // _LARGE)
    finally:
        worker.stop(5.0)
        Worker.engine = before
    return *_split(small, large), max(0.0, (paused - large) / _LARGE - _COMPUTES_S)


_numbers = iter(range(1, 1 << 62))


def _exchanged(worker: Worker, plan: bytes, size: int, count: int, dumps: Callable[[Any], bytes]) -> float:
    """Return the processor time that *count* episodes take in exchanges of *size*, without the driver's."""
    taken_s = 0.0
    for _ in range(count // size):
        orders = Orders(next(_numbers), 0, False, False)
        orders.plans = {1: plan}
        orders.give = [(next(_numbers), dumps((1, 7, None, 0, _ITEM)), [0]) for _ in range(size)]
        data = encode(orders)
        began = time.process_time()
        worker.give(data)
        left = size
        while left:
            shipment = worker.take(1.0)
            left -= len(shipment[0])
            pickled(shipment)
        taken_s += time.process_time() - began
    return taken_s


def _engine() -> tuple[float, float]:
    """Return what a request for tokens takes of a worker's loop, and a token that comes by itself."""
    from areal_core.async_task_runner import AsyncTaskRunner
    from areal_core.embedded import EmbeddedServer
    from areal_core.remote_inf_engine import RemoteInfEngine

    config = InferenceEngineConfig()
    with (
        EmbeddedServer(ms_per_token=_MS_PER_TOKEN, sigma=0.0) as server,
        RemoteInfEngine(config, backend="sglang") as engine,
        AsyncTaskRunner[Any](_REQUESTS) as runner,
    ):
        engine.initialize(server.addr)

        async def ask(tokens: int) -> float:
            gconfig = GenerationHyperparameters(max_new_tokens=tokens, ignore_eos=True)
            began = time.process_time()
            await asyncio.gather(
                *(engine.agenerate(ModelRequest([1, 2, number], gconfig)) for number in range(_REQUESTS))
            )
            return (time.process_time() - began) / _REQUESTS

        runner.run(ask, _SHORT)  # connections are opened
        short, long = runner.run(ask, _SHORT), runner.run(ask, _LONG)
    token_s = max(0.0, (long - short) / (_LONG - _SHORT))
    return max(0.0, short - _SHORT * token_s), token_s
