"""Who keeps episodes going: our executor, the published dispatcher, a loop by hand."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import uvloop

from _contenders import BOUND, HOUR_S, PATIENCE_S, Threaded, Work
from _published import RELEASE, Dispatching, WheelError, published_dispatching
from _table import Absent
from areal_core.config import InferenceEngineConfig
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import RolloutWorkflow
from areal_core.workflow_executor import WorkflowExecutor

TOKENS = 64
ITEM = {"input_ids": [1, 2, 3]}
_IDS = np.arange(TOKENS).reshape(1, TOKENS)
_ONES = np.ones((1, TOKENS), dtype=np.int64)
_LOGPROBS = np.full((1, TOKENS), -0.5, dtype=np.float32)
_REWARD = np.array([1.0], dtype=np.float32)


def trajectory(version: int) -> dict[str, Any]:
    """Return what an episode yields: arrays ``[1, 64]``, of which it makes the one of versions anew."""
    return {
        "input_ids": _IDS,
        "attention_mask": _ONES,
        "loss_mask": _ONES,
        "logprobs": _LOGPROBS,
        "versions": np.full((1, TOKENS), version),
        "rewards": _REWARD,
    }


class Plays(RolloutWorkflow):
    """A workflow whose episodes await some work and yield a trajectory: the same for every contender."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self._work = work

    async def arun_episode(self, engine: Any, data: dict[str, Any]) -> dict[str, Any]:
        """Play one episode."""
        await self._work()
        return trajectory(engine.get_version())


@dataclass(frozen=True)
class Settings:
    """How many episodes may run at once, how many make a batch, and how stale they may be."""

    at_once: int | None
    batch: int
    staleness: int


_journals = tempfile.TemporaryDirectory(prefix="areal-core-journals-")  # until the benchmark ends

UNBOUNDED = Settings(None, 1 << 20, 0)


class Producer(Protocol):
    """Keeps episodes going and gives batches of their trajectories to a trainer in the main thread."""

    def start(self, workflow: Plays, settings: Settings) -> None: ...

    def batch(self) -> list[Any]:
        """Return the next batch of trajectories; episodes for later ones may go on."""

    def set_version(self, version: int) -> None: ...


class Queueing(Producer, Protocol):
    """One that keeps what may not start yet."""

    def queue(self, count: int) -> None:
        """Hand over so many episodes."""

    def take_one(self) -> None:
        """Wait for the next that has ended, and take its trajectory."""


class ExecutorProducer:
    """`WorkflowExecutor.prepare_batch`. If it *keeps_journal* each version is a step that is committed."""

    def __init__(self, *, keeps_journal: bool = False) -> None:
        self._keeps_journal = keeps_journal

    def start(self, workflow: Plays, settings: Settings) -> None:
        self._workflow = workflow
        journal = Path(tempfile.mkdtemp(dir=_journals.name)) if self._keeps_journal else None
        self.engine, self.executor = _executor(settings, journal)
        self._lists = [[ITEM] * settings.batch]

    def batch(self) -> list[Any]:
        return self.executor.prepare_batch(self._lists, self._workflow)

    def set_version(self, version: int) -> None:
        if self._keeps_journal:
            self.executor.commit(version)
        self.engine.set_version(version)

    def queue(self, count: int) -> None:
        for _ in range(count):
            self.executor.submit(ITEM, self._workflow)

    def take_one(self) -> None:
        self.executor.wait(1, timeout=PATIENCE_S)


class HandProducer:
    """A loop in the main thread, a batch after the other: the limit, and what is written by hand."""

    def start(self, workflow: Plays, settings: Settings) -> None:
        self._workflow = workflow
        self._batch = settings.batch
        self.engine = Versions()
        self._loop = uvloop.new_event_loop()

    def batch(self) -> list[Any]:
        return self._loop.run_until_complete(self._play())

    async def _play(self) -> list[Any]:
        play, engine, create_task = self._workflow.arun_episode, self.engine, self._loop.create_task
        tasks = [create_task(play(engine, ITEM)) for _ in range(self._batch)]
        return [await task for task in tasks]

    def set_version(self, version: int) -> None:
        self.engine.version = version


class DispatcherProducer:
    """``BatchTaskDispatcher.active_submit_and_wait`` of the published wheel, with its staleness manager."""

    def __init__(self, dispatching: Dispatching) -> None:
        self._dispatching = dispatching

    def start(self, workflow: Plays, settings: Settings) -> None:
        self._batch = settings.batch
        self.engine = Versions()
        self.dispatcher = _dispatcher(self._dispatching, self.engine, settings)
        self.inputs = (Given(task_id, workflow) for task_id in itertools.count())

    def batch(self) -> list[Any]:
        results: list[Any] = self.dispatcher.active_submit_and_wait(self.inputs, self._batch)
        return results

    def set_version(self, version: int) -> None:
        """Set it between a pause and a resume, as its trainers do: the dispatcher looks at it then."""
        self.dispatcher.pause()
        self.engine.version = version
        self.dispatcher.resume()

    def queue(self, count: int) -> None:
        for given in itertools.islice(self.inputs, count):
            self.dispatcher.submit_task_input(given)

    def take_one(self) -> None:
        self.dispatcher.wait_results(1, timeout=PATIENCE_S)


class Versions:
    """What the published dispatcher asks for the policy version."""

    version = 0

    def get_version(self) -> int:
        return self.version


class ExecutorContender(Threaded):
    """`WorkflowExecutor`, as one that runs coroutines: each call of work is an episode."""

    def start(self) -> None:
        self.engine, self._executor = _executor(UNBOUNDED)

    def launch(self, work: Work, calls: int) -> None:
        submit, workflow = self._executor.submit, Plays(work)
        for _ in range(calls):
            submit(ITEM, workflow)

    def collect(self, count: int) -> list[Any]:
        found = self._executor.wait(count, timeout=PATIENCE_S)
        return [0 if trajectory is None else 1 for trajectory in found]

    def value(self, work: Work) -> Any:
        self._executor.submit(ITEM, Plays(work))
        return self.collect(1)[0]

    def stop(self) -> None:
        self._executor.destroy()


class DispatcherContender(Threaded):
    """The published dispatcher, likewise."""

    def __init__(self, dispatching: Dispatching) -> None:
        self._dispatching = dispatching

    def start(self) -> None:
        self._ids = itertools.count()
        self._dispatcher = _dispatcher(self._dispatching, Versions(), UNBOUNDED)

    def launch(self, work: Work, calls: int) -> None:
        submit, workflow = self._dispatcher.submit_task_input, Plays(work)
        for _ in range(calls):
            submit(Given(next(self._ids), workflow))

    def collect(self, count: int) -> list[Any]:
        found = self._dispatcher.wait_results(count, timeout=PATIENCE_S)
        return [0 if result is None else 1 for result in found]

    def value(self, work: Work) -> Any:
        self.launch(work, 1)
        return self.collect(1)[0]

    def stop(self) -> None:
        self._dispatcher.destroy()


@dataclass(frozen=True, slots=True)
class Given:
    """What the dispatcher is given, and what it gives back."""

    task_id: int
    workflow: Plays
    trajectory: dict[str, Any] | None = None


OURS_PRODUCING = ExecutorProducer()
OURS_WITH_JOURNAL = ExecutorProducer(keeps_journal=True)
BY_HAND = HandProducer()
OURS_EXECUTING = ExecutorContender()


@cache
def areal_producing() -> Queueing | Absent:
    """Return the dispatcher of the published wheel, or why it cannot be had."""
    dispatching = _dispatching()
    return dispatching if isinstance(dispatching, Absent) else DispatcherProducer(dispatching)


@cache
def areal_dispatching() -> DispatcherContender | Absent:
    """Return the same as one that runs coroutines."""
    dispatching = _dispatching()
    return dispatching if isinstance(dispatching, Absent) else DispatcherContender(dispatching)


def _dispatching() -> Dispatching | Absent:
    try:
        return published_dispatching()
    except WheelError as error:
        return Absent(f"{RELEASE} cannot be had: {error}")


def _executor(settings: Settings, journal: Path | None = None) -> tuple[RemoteInfEngine, WorkflowExecutor]:
    config = InferenceEngineConfig(
        consumer_batch_size=settings.batch,
        max_concurrent_rollouts=settings.at_once,
        max_head_offpolicyness=settings.staleness,
        episode_timeout=2 * HOUR_S,
        stall_timeout=PATIENCE_S,
        journal_dir=journal,
        progress=False,
    )
    logging.getLogger("areal_core").setLevel(logging.ERROR)  # no descriptors for connections nobody makes
    engine = RemoteInfEngine(config)  # knows the version; nobody asks it for tokens
    executor = WorkflowExecutor(config, engine)
    executor.initialize()
    return engine, executor


def _dispatcher(dispatching: Dispatching, versions: Versions, settings: Settings) -> Any:
    at_once = settings.at_once or (settings.staleness + 1) * settings.batch
    manager = dispatching.StalenessManager(
        versions,
        max_concurrent_rollouts=at_once,
        consumer_batch_size=settings.batch,
        max_staleness=settings.staleness,
    )

    def task_of(given: Given) -> Callable[[], Awaitable[Given]]:
        async def play() -> Given:
            result = await given.workflow.arun_episode(versions, ITEM)
            manager.on_rollout_accepted()
            return Given(given.task_id, given.workflow, result)

        return play

    dispatcher = dispatching.BatchTaskDispatcher(min(16 * at_once, BOUND), task_of, manager)
    dispatcher.initialize(logging.getLogger("areal"))
    return dispatcher
