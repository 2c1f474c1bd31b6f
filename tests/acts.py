"""Calls into a runner to be interrupted, each on a stage of its own, where every task is accounted for.

An act sets its stage, yields the call, and is sent what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from areal_core._runner.lifecycle import life_of
from areal_core.async_task_runner import AsyncTaskRunner, TimedResult
from areal_core.errors import TaskQueueFullError, UnknownTaskError
from doors import Caller, Door, fail, give, start_blocked, turn_loop
from interrupts import Interruption

BOUND = 4
"""The ``max_queue_size`` of the runner."""
SHORT_S = 0.0005  # of a task for which its waiter blocks, as a rule: the outcome is the same if it does not

Act = Generator[Callable[[], object], Interruption, None]
Play = Callable[["Stage"], Act]


class Stage:
    """A runner in a known state, and what there will be to find when everything has ended."""

    def __init__(self, runner: AsyncTaskRunner[int]) -> None:
        self.runner = runner
        self.door = Door()
        self.expected: dict[int, str] = {}
        """The status of each task by its id."""
        self.got: list[TimedResult[int]] = []
        """The results that reached a caller."""
        self._callers: list[Caller[None]] = []
        self._collected_before = runner.stats().collected
        self._calls_before = self._calls()

    # -- what there is before the call

    def submit(self, task_id: int, fn: Callable[..., Any], *args: Any) -> None:
        self.runner.submit(fn, *args, task_id=task_id)
        self.expected[task_id] = "completed"

    def finished(self, *task_ids: int) -> None:
        for task_id in task_ids:
            self.submit(task_id, give, task_id)
        turn_loop(self.runner)

    def running(self, *task_ids: int) -> None:
        for task_id in task_ids:
            self.submit(task_id, self.door.walk_through, task_id)
        self.door.wait_for(len(task_ids))

    def about_to_finish(self, task_id: int) -> None:
        self.submit(task_id, asyncio.sleep, SHORT_S, task_id)

    def pending(self, *task_ids: int) -> None:
        self.runner.pause()
        for task_id in task_ids:
            self.submit(task_id, give, task_id)

    def elsewhere(self, function: Callable[..., None], *args: Any) -> None:
        """Have another thread call *function*, and block in it."""
        self._callers.append(start_blocked(function, *args))

    # -- the calls

    def wait(self, count: int, timeout: float | None = None) -> None:
        # Between the return of wait() and the end of this line no signal is noticed.
        self.got.extend(self.runner.wait(count, timeout, with_timing=True))

    def wait_for_task(self, task_id: int, timeout: float | None = None) -> None:
        self.got.append(self.runner.wait_for_task(task_id, timeout))

    def has(self, task_id: int) -> bool:
        return any(result.task_id == task_id for result in self.got)

    def iterate(self) -> None:
        for result in self.runner.as_completed():
            self.got.append(result)

    # -- what there is afterwards

    def see_whether_cancelled(self, task_id: int, outcome: Interruption) -> None:
        """Note what will become of a pending task. No second cancel: that might repair it."""
        cancelled = task_id not in life_of(self.runner).ledger._pending
        is_told_of = " _tell" in outcome.where or " _post" in outcome.where
        assert cancelled or (outcome.noticed and not is_told_of)
        self.expected[task_id] = "cancelled" if cancelled else "completed"

    def clear(self, twice: bool) -> None:
        """Let everything end; find each task once, with its status, and the runner as good as new."""
        runner = self.runner
        stats = runner.stats()
        assert stats.submitted == stats.pending + stats.running + stats.finished + stats.collected
        if not self._callers:
            assert stats.collected - self._collected_before == len(self.got)
        self.door.open()
        runner.resume()
        for caller in self._callers:
            caller.result()
        left = len(self.expected) - len(self.got)
        if left:
            self.wait(left, timeout=5.0)
        self.check()
        runner.submit(give, 7)
        assert runner.wait(1, timeout=5.0) == [7], "the loop thread does not work"
        assert runner.stats().submitted == runner.stats().collected
        self._nothing_is_left_inside(twice)

    def check(self) -> None:
        assert sorted((result.task_id, result.status) for result in self.got) == sorted(self.expected.items())

    def _nothing_is_left_inside(self, twice: bool) -> None:
        life = self.runner._life
        assert life is not None
        shelf = life.ledger.shelf
        assert (shelf._waiters, shelf._claims, list(shelf.returned)) == ([], {}, [])
        # A second signal may come where run() is about to put this right. That costs a record, no more.
        assert self._calls() <= self._calls_before or twice

    def _calls(self) -> int:
        assert self.runner._life is not None
        return len(self.runner._life._calls._open)


# -- the acts ---------------------------------------------------------------------------------------

SHORT: list[Play] = []
LONG: list[Play] = []
"""Of these there are too many pairs of steps."""


def short_act(play: Play) -> Play:
    SHORT.append(play)
    return play


def long_act(play: Play) -> Play:
    LONG.append(play)
    return play


@short_act
def submit(stage: Stage) -> Act:
    stage.running(1)
    before = stage.runner.stats().submitted
    outcome = yield lambda: stage.runner.submit(give, 2, task_id=2)
    accepted = stage.runner.stats().submitted > before
    assert accepted or outcome.noticed
    if accepted:
        stage.expected[2] = "completed"


@long_act
def submit_refused(stage: Stage) -> Act:
    stage.running(*range(BOUND))

    def call() -> None:
        with pytest.raises(TaskQueueFullError):
            stage.runner.submit(give)

    yield call


@short_act
def submit_for_another(stage: Stage) -> Act:
    before = stage.runner.stats().submitted
    stage.elsewhere(stage.wait, 1)
    yield lambda: stage.runner.submit(give, 1, task_id=1)
    if stage.runner.stats().submitted == before:
        stage.runner.submit(give, 1, task_id=1)
    stage.expected[1] = "completed"


@long_act
def wait_for_some(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait(2)


@long_act
def wait_for_all(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait(3)


@long_act
def wait_blocked(stage: Stage) -> Act:
    stage.finished(1)
    stage.about_to_finish(2)
    yield lambda: stage.wait(2)


@long_act
def wait_timed_out(stage: Stage) -> Act:
    stage.finished(1)
    stage.running(2)

    def call() -> None:
        with pytest.raises(TimeoutError):
            stage.wait(2, timeout=0)

    yield call


@long_act
def wait_beside_another(stage: Stage) -> Act:
    stage.finished(1)
    stage.running(2)
    stage.elsewhere(stage.wait, 2)
    yield lambda: stage.wait(1)
    if stage.got:
        stage.submit(3, give, 3)


@long_act
def claim_finished(stage: Stage) -> Act:
    stage.finished(1, 2, 3)
    yield lambda: stage.wait_for_task(2)


@long_act
def claim_blocked(stage: Stage) -> Act:
    stage.finished(1)
    stage.about_to_finish(2)
    yield lambda: stage.wait_for_task(2)


@long_act
def claim_timed_out(stage: Stage) -> Act:
    stage.running(1)

    def call() -> None:
        with pytest.raises(TimeoutError):
            stage.wait_for_task(1, timeout=0)

    yield call


@long_act
def claim_refused(stage: Stage) -> Act:
    stage.finished(1)

    def call() -> None:
        with pytest.raises(UnknownTaskError):
            stage.wait_for_task(2)

    yield call


@long_act
def claim_beside_an_iterator(stage: Stage) -> Act:
    stage.running(1, 2)
    stage.elsewhere(stage.iterate)

    def call() -> None:
        with pytest.raises(TimeoutError):
            stage.wait_for_task(1, timeout=0)

    yield call


@long_act
def iterate(stage: Stage) -> Act:
    stage.finished(1, 2)
    stage.about_to_finish(3)
    yield stage.iterate


@short_act
def cancel_pending(stage: Stage) -> Act:
    stage.pending(1, 2)
    outcome = yield lambda: stage.runner.cancel(1)
    stage.see_whether_cancelled(1, outcome)


@short_act
def cancel_pending_of_another(stage: Stage) -> Act:
    stage.pending(1, 2)
    stage.elsewhere(stage.wait_for_task, 1)
    outcome = yield lambda: stage.runner.cancel(1)
    stage.see_whether_cancelled(1, outcome)


@short_act
def cancel_running(stage: Stage) -> Act:
    stage.running(1, 2)
    yield lambda: stage.runner.cancel(1)
    assert stage.runner.cancel(1) or stage.has(1)
    stage.expected[1] = "cancelled"


@short_act
def pause(stage: Stage) -> Act:
    outcome = yield stage.runner.pause
    assert stage.runner.paused or outcome.noticed


@short_act
def resume(stage: Stage) -> Act:
    stage.pending(1, 2)
    outcome = yield stage.runner.resume
    assert not stage.runner.paused or outcome.noticed


@long_act
def run(stage: Stage) -> Act:
    steps = []

    async def work() -> None:
        steps.append("began")
        try:
            await asyncio.sleep(4 * SHORT_S)
            steps.append("ended")
        except asyncio.CancelledError:
            steps.append("cancelled")

    outcome = yield lambda: stage.runner.run(work)
    turn_loop(stage.runner)
    # Nobody can promise it against a second signal, where the first one is being answered.
    assert steps != ["began"] or outcome.noticed > 1, "it runs on, and nobody waits for it"


@long_act
def run_failed(stage: Stage) -> Act:
    def call() -> None:
        with pytest.raises(ZeroDivisionError):
            stage.runner.run(fail, ZeroDivisionError())

    yield call


@short_act
def look(stage: Stage) -> Act:
    stage.finished(1)

    def call() -> None:
        stats = stage.runner.stats()
        assert stats.submitted == stats.pending + stats.running + stats.finished + stats.collected
        repr(stage.runner)

    yield call
