"""Calls into an executor to be interrupted, each on a stage of its own, where every rollout is accounted for.

An act sets its stage, yields the call, and is sent what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from areal_core.errors import UnknownTaskError
from areal_core.workflow_executor import RolloutOutcome, WorkflowExecutor
from doors import Door, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Playing,
    answering,
    balance,
    trajectory_of,
    value_of,
    values_of,
)
from interrupts import Interruption

Act = Generator[Callable[[], object], Interruption, None]
Play = Callable[["Stage"], Act]

SHORT_S = 0.0005  # of a rollout for which its waiter blocks, as a rule


async def _soon(value: int) -> Any:
    await asyncio.sleep(SHORT_S)
    return trajectory_of(value)


soon = Playing(_soon)


class Counting(Engine):
    """An engine whose version rises at the reads it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.rises_at: int | None = None

    def get_version(self) -> int:
        if self.rises_at is not None:
            self.rises_at -= 1
            if self.rises_at < 0:
                self.version += 1
                self.rises_at = None
        return self.version


class Stage:
    """An executor in a known state, and what there will be to find in the end."""

    def __init__(self, executor: WorkflowExecutor, engine: Counting) -> None:
        self.executor = executor
        self.engine = engine
        self.door = Door()
        self.expected: set[int] = set()
        """The values that were submitted."""
        self.got: list[Any] = []
        """The trajectories, and outcomes, that reached a caller."""
        self._collected_before = executor.ledger.collected

    def submit(self, value: int, workflow: Any = answering, **options: Any) -> None:
        self.executor.submit(value, workflow, task_id=value, **options)
        self.expected.add(value)

    def finished(self, *values: int) -> None:
        for value in values:
            self.submit(value)
        turn_loop(self.executor.runner)

    def running(self, *values: int) -> None:
        workflow = Playing(self._through_the_door)
        for value in values:
            self.submit(value, workflow)
        self.door.wait_for(len(values))

    async def _through_the_door(self, value: int) -> Any:
        return await self.door.walk_through(trajectory_of(value))

    def pending(self, *values: int) -> None:
        self.executor.pause()
        for value in values:
            self.submit(value)

    # Between the return of a call and the end of its line no signal is noticed.

    def wait(self, count: int, timeout: float | None = None) -> None:
        self.got.extend(self.executor.wait(count, timeout))

    def wait_outcomes(self, count: int, timeout: float | None = None) -> None:
        self.got.extend(self.executor.wait_outcomes(count, timeout))

    def wait_for_task(self, value: int, timeout: float | None = None) -> None:
        self.got.append(self.executor.wait_for_task(value, timeout))

    def clear(self) -> None:
        """Let everything end; find each value once, and the executor as good as new."""
        executor = self.executor
        balance(executor.ledger)
        self.door.open()
        executor.resume()
        turn_loop(executor.runner)
        got = set(map(_plain, self.got))
        for value in self.expected - got:
            with pytest.raises(ValueError, match="is in use"):
                executor.submit(value, answering, task_id=value)
        left = len(self.expected) - len(self.got)
        if left:
            self.wait(left, timeout=5.0)
        assert sorted(map(_plain, self.got)) == sorted(self.expected)
        assert executor.ledger.collected - self._collected_before == len(self.expected)
        for value in (0, *self.expected):
            executor.submit(value, answering, task_id=value)
        again = values_of(executor.wait(len(self.expected) + 1, timeout=5.0))
        assert again == [0, *self.expected], "the executor does not work"
        ledger = executor.ledger
        assert (ledger.pending, ledger.running, ledger.finished) == (0, 0, 0), str(ledger)
        assert executor._shift is not None
        core = executor._shift.desk.core
        assert not core._rollouts
        assert not core.delivery.requests
        assert not executor._shift.desk.returned


def _plain(one: Any) -> int:
    trajectory = one.trajectory if isinstance(one, RolloutOutcome) else one
    value = value_of(trajectory)
    assert value is not None
    return value


ACTS: list[Play] = []


def act(play: Play) -> Play:
    ACTS.append(play)
    return play


@act
def submit(stage: Stage) -> Act:
    stage.running(1)
    before = stage.executor.ledger.submitted
    yield lambda: stage.executor.submit(2, answering, task_id=2)
    if stage.executor.ledger.submitted == before:
        stage.executor.submit(2, answering, task_id=2)  # the id is free: nobody has it
    stage.expected.add(2)


@act
def wait_for_some(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait(2)
    stage.wait(3 - len(stage.got), WAIT_S)
    assert list(map(_plain, stage.got)) == [1, 2, 3], "they lost their places"


@act
def wait_for_the_outcomes_of_all(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait_outcomes(3)


@act
def wait_blocked(stage: Stage) -> Act:
    stage.finished(1)
    stage.submit(2, soon)
    yield lambda: stage.wait(2)


@act
def wait_while_the_version_rises(stage: Stage) -> Act:
    stage.finished(1, 2)
    stage.engine.rises_at = 0
    yield lambda: stage.wait(2)
    stage.engine.rises_at = None


@act
def wait_timed_out(stage: Stage) -> Act:
    stage.finished(1)
    stage.running(2)

    def call() -> None:
        with pytest.raises(TimeoutError):
            stage.wait(2, timeout=0)

    yield call


@act
def wait_beside_another(stage: Stage) -> Act:
    stage.running(1)
    other = start_blocked(stage.executor.wait, 2)
    stage.submit(2, soon)
    yield lambda: stage.wait(1)
    stage.door.open()
    if stage.got:
        stage.submit(3)
    stage.got.extend(other.result())


@act
def claim_finished(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait_for_task(2)


@act
def claim_blocked(stage: Stage) -> Act:
    stage.finished(1)
    stage.submit(2, soon)
    yield lambda: stage.wait_for_task(2)


@act
def claim_timed_out(stage: Stage) -> Act:
    stage.running(1)

    def call() -> None:
        with pytest.raises(TimeoutError):
            stage.wait_for_task(1, timeout=0)

    yield call


@act
def claim_refused(stage: Stage) -> Act:
    stage.finished(1)

    def call() -> None:
        with pytest.raises(UnknownTaskError):
            stage.wait_for_task(2)

    yield call


@act
def roll_out_a_batch(stage: Stage) -> Act:
    stage.finished(1)
    stage.wait_for_task(1)
    before = stage.executor.ledger.submitted
    yield lambda: stage.got.extend(stage.executor.rollout_batch([5, 6], soon))
    submitted = stage.executor.ledger.submitted - before
    assert submitted in (0, 2)
    if submitted and len(stage.got) == 1:
        stage.wait(2, WAIT_S)  # their ids nobody knows
    stage.expected |= {5, 6} if submitted else set()


@act
def pause_and_cancel(stage: Stage) -> Act:
    stage.pending(1)
    stage.executor.submit(2, answering, task_id=2)
    before = stage.executor.ledger.cancelled
    yield lambda: stage.executor.cancel(2)
    stage.executor.cancel(2)
    assert stage.executor.ledger.cancelled == before + 1
    assert stage.executor.wait_for_task(2, WAIT_S) is None
    stage._collected_before += 1


@act
def steer_and_look(stage: Stage) -> Act:
    stage.running(1)
    stage.submit(2)
    executor = stage.executor

    def call() -> None:
        executor.pause()
        executor.on_version_changed()
        executor.resume()
        executor.reset_failures()
        balance(executor.ledger)
        executor.get_capacity()
        executor.report()

    yield call
