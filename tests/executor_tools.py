"""Engines, workflows and trajectories for tests of the executor. None of them needs a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import numpy as np

from areal_core._runner.life import Life
from areal_core._runner.lifecycle import life_of
from areal_core.explain import Explanation, StuckRollout
from areal_core.types import InferenceEngine, ModelRequest, ModelResponse, RolloutWorkflow
from areal_core.workflow_executor import RolloutLedger, RolloutOutcome, WorkflowExecutor

WAIT_S = 20.0
"""Longer than anything takes: a test that waits so long fails."""


class Engine:
    """An engine that generates nothing, and whose version is whatever a test says."""

    def __init__(self, version: int = 0) -> None:
        self.version = version

    def get_version(self) -> int:
        return self.version

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        raise NotImplementedError


class TellingEngine(Engine):
    """One that tells its subscribers of each new version, in the thread that sets it."""

    def __init__(self, version: int = 0) -> None:
        super().__init__(version)
        self.subscribers: list[Callable[[int], None]] = []
        self._setting = threading.Lock()

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        self.subscribers.append(callback)
        return lambda: self.subscribers.remove(callback)

    def set_version(self, version: int) -> None:
        with self._setting:
            self.version = version
            for callback in list(self.subscribers):
                callback(version)


def trajectory_of(value: int, *, versions: int | Iterable[int] | None = None, length: int = 1) -> Any:
    """Return a trajectory of one sample whose tokens are *value*; *versions* of all of them, or of each."""
    shape = (1, length)
    trajectory = {
        "input_ids": np.full(shape, value, np.int64),
        "attention_mask": np.ones(shape, np.int32),
    }
    if versions is not None:
        each = [versions] * length if isinstance(versions, int) else list(versions)
        trajectory["versions"] = np.array([each], np.int32)
    return trajectory


def value_of(trajectory: dict[str, Any] | None) -> int | None:
    """Return which value a trajectory was made of; None for none."""
    return None if trajectory is None else int(trajectory["input_ids"][0, 0])


def values_of(trajectories: Iterable[dict[str, Any] | None]) -> list[int | None]:
    return [value_of(trajectory) for trajectory in trajectories]


def statuses_of(outcomes: Iterable[RolloutOutcome]) -> dict[int, str]:
    """Return the status of each by its id; fail where an id comes twice."""
    by_id: dict[int, str] = {}
    for outcome in outcomes:
        assert outcome.task_id not in by_id, f"{outcome.task_id} came twice"
        by_id[outcome.task_id] = outcome.status
    return by_id


class Playing(RolloutWorkflow):
    """A workflow that is an async function of the data."""

    def __init__(self, play: Callable[[Any], Awaitable[Any]]) -> None:
        self._play = play

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        return await self._play(data)


class Answering(RolloutWorkflow):
    """Makes at once a trajectory of its data, plus *add*; a module-level class, to be named in a text."""

    def __init__(self, add: int = 0) -> None:
        self.add = add

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> Any:
        return trajectory_of(data + self.add)


answering = Answering()


class ReplyingEngine(Engine):
    """Answers each request at once."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        return ModelResponse(
            input_tokens=list(request.input_ids),
            output_tokens=[1],
            output_logprobs=[0.0],
            output_versions=[0],
            versions_exact=True,
            stop_reason="stop",
            latency=0.0,
            ttft=0.0,
            segments=1,
        )


class Nothing:
    """No workflow."""


nothing = Nothing()


def accept_even(trajectory: dict[str, Any]) -> bool:
    return int(trajectory["input_ids"][0, 0]) % 2 == 0


def only(explanation: Explanation) -> StuckRollout:
    (rollout,) = explanation.rollouts
    return rollout


async def _act(data: Any) -> Any:
    if isinstance(data, BaseException):
        raise data
    return None if data is None else trajectory_of(data)


obeying = Playing(_act)
"""Makes a trajectory of a number, rejects None, and raises an error."""


class Lists:
    """A dataloader: lists of *size* items, which count on from pass to pass."""

    def __init__(self, size: int, *, lists: int = 4, batch_size: int | None = None) -> None:
        self._size, self._lists = size, lists
        self.next = 0
        """The next item; the number of those that were pulled."""
        if batch_size is not None:
            self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._lists):
            first = self.next
            self.next += self._size
            yield list(range(first, self.next))


def no_thread_to_be_had(*_: object) -> None:
    """Raise what Python does where the system has no more threads."""
    raise RuntimeError("can't start new thread")


def life_under(executor: WorkflowExecutor) -> Life:
    """Return what the rollouts run on."""
    return life_of(executor.runner)


def balance(ledger: RolloutLedger) -> None:
    """Fail unless everything in *ledger* is somewhere, once."""
    where = ledger.pending + ledger.running + ledger.finished + ledger.collected + ledger.discarded
    assert ledger.submitted == where, str(ledger)
    ends = (ledger.accepted, ledger.rejected, ledger.failed, ledger.timed_out, ledger.cancelled, ledger.stale)
    assert sum(ends) == ledger.finished + ledger.collected + ledger.discarded, str(ledger)
    assert min(ledger.pending, ledger.running, ledger.finished, ledger.collected, *ends) >= 0, str(ledger)


def counts(ledger: RolloutLedger) -> dict[str, int]:
    """Return those that are not 0."""
    found = {name: getattr(ledger, name) for name in RolloutLedger.__slots__}
    return {name: count for name, count in found.items() if count}


async def park() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
