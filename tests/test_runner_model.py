"""The runner against a small model of it, which predicts every number of ``stats()`` after every step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from areal_core import AsyncTaskRunner, RunnerStoppedError, TaskQueueFullError, TimedResult, UnknownTaskError
from areal_core.async_task_runner import RunnerStats

BOUND = 6
PATIENCE_S = 10.0  # after this a test has failed; it measures nothing
A_MOMENT_S = 0.001
IDS = st.integers(0, BOUND + 1)


class Actor:
    """A task on strings: it starts, waits to be told how to end, and ends so."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self._order: asyncio.Queue[str] = asyncio.Queue()

    async def play(self) -> str:
        self.started.set()
        order = await self._listen()
        if order == "raise":
            raise ValueError("as it was told")
        if order == "exit":
            raise SystemExit(3)
        if order == "give up":
            raise asyncio.CancelledError
        return order

    async def _listen(self) -> str:
        while True:
            try:
                return await self._order.get()
            except asyncio.CancelledError:
                self.cancelled.set()
                if not self.stubborn:
                    raise

    async def tell(self, order: str) -> None:
        self._order.put_nowait(order)


STATUS = {"raise": "failed", "exit": "failed", "give up": "cancelled", "value": "completed"}


@dataclass
class Model:
    """What the runner should hold: ids, with their status where they have one."""

    state: str = "new"
    pending: dict[int, Actor] = field(default_factory=dict)
    running: dict[int, Actor] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    collected: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    abandoned: list[Actor] = field(default_factory=list)
    submitted: list[int] = field(default_factory=list)
    unordered: int = 0
    """How many at the end of *finished* came in no promised order."""

    @property
    def on(self) -> bool:
        return self.state in ("running", "paused")

    def in_use(self) -> list[int]:
        return [*self.pending, *self.running, *self.finished]

    def stats(self) -> RunnerStats:
        return RunnerStats(
            submitted=len(self.submitted),
            pending=len(self.pending),
            running=len(self.running),
            finished=len(self.finished),
            collected=len(self.collected),
            discarded=len(self.discarded),
            abandoned=len(self.abandoned),
            state=self.state,
        )

    def finish(self, task_id: int, status: str) -> None:
        self.pending.pop(task_id, None)
        self.running.pop(task_id, None)
        self.finished[task_id] = status

    def collect(self, results: list[TimedResult[Any]]) -> None:
        ordered = list(self.finished)[: len(self.finished) - self.unordered]
        for position, result in enumerate(results):
            if position < len(ordered):
                assert result.task_id == ordered[position]
            self.deliver(result)
        self.unordered = min(self.unordered, len(self.finished))

    def deliver(self, result: TimedResult[Any]) -> None:
        assert result.status == self.finished.pop(result.task_id)
        assert result.data == ("value" if result.status == "completed" else None)
        assert (result.error is None) == (result.status == "completed")
        self.collected.append(result.task_id)


class RunnerMachine(RuleBasedStateMachine):
    """Does with a runner what callers do, and asks the model what should have come of it."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.runner = AsyncTaskRunner[str](BOUND, cancel_grace=A_MOMENT_S, loop_factory=self.loop_factory)
        self.model = Model()

    # -- lifecycle ---------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self._start()

    @precondition(lambda self: not self.model.on)
    @rule()
    def start_again(self) -> None:
        self.model.discarded += self.model.finished
        self.model.finished.clear()
        self.model.unordered = 0
        self._start()

    def _start(self) -> None:
        self.runner.initialize()
        self.model.state = "running"
        self.model.abandoned = []  # those of an earlier life are not this one's

    @precondition(lambda self: self.model.on)
    @rule()
    def start_twice(self) -> None:
        with pytest.raises(RuntimeError, match="destroy"):
            self.runner.initialize()

    @rule(really=st.sampled_from([True, False, False, False, False, False]))
    def destroy(self, really: bool) -> None:
        if not really:
            return  # seldom: much has to come together first
        self.runner.destroy(timeout=PATIENCE_S)
        ended = [*self.model.running, *self.model.pending]
        stubborn = [actor for actor in self.model.running.values() if actor.stubborn]
        for task_id in ended:
            self.model.finish(task_id, "cancelled")
        self.model.unordered += len(ended)
        self.model.abandoned += stubborn
        self.model.state = "stopped"

    @rule()
    def pause(self) -> None:
        if self._refused(self.runner.pause):
            return
        self.model.state = "paused"

    @rule()
    def resume(self) -> None:
        if self._refused(self.runner.resume):
            return
        self.model.state = "running"
        for task_id, actor in list(self.model.pending.items()):
            self._begins(task_id, actor)

    def _refused(self, action: Callable[[], object]) -> bool:
        if self.model.on:
            action()
            return False
        with pytest.raises(RunnerStoppedError):
            action()
        return True

    # -- tasks -------------------------------------------------------------------------------------

    @rule(task_id=IDS, stubborn=st.booleans())
    def submit(self, task_id: int, stubborn: bool) -> None:
        actor = Actor(stubborn=stubborn)
        if self._accepts(task_id, lambda: self.runner.submit(actor.play, task_id=task_id)):
            self.model.pending[task_id] = actor
            if self.model.state == "running":
                self._begins(task_id, actor)

    @precondition(lambda self: self.model.state == "running")
    @rule(task_id=IDS)
    def submit_with_a_deadline(self, task_id: int) -> None:
        actor = Actor()
        options = self.runner.with_options(task_timeout=A_MOMENT_S, task_id=task_id)
        if self._accepts(task_id, lambda: options.submit(actor.play)):
            assert actor.cancelled.wait(PATIENCE_S)
            self._settle()
            self.model.finish(task_id, "timed_out")

    def _accepts(self, task_id: int, submit: Callable[[], int]) -> bool:
        refusal = self._refusal(task_id)
        if refusal is not None:
            with pytest.raises(refusal):
                submit()
            return False
        assert submit() == task_id
        self.model.submitted.append(task_id)
        return True

    def _refusal(self, task_id: int) -> type[Exception] | None:
        if not self.model.on:
            return RunnerStoppedError
        if len(self.model.in_use()) == BOUND:
            return TaskQueueFullError
        return ValueError if task_id in self.model.in_use() else None

    def _begins(self, task_id: int, actor: Actor) -> None:
        assert actor.started.wait(PATIENCE_S)
        del self.model.pending[task_id]
        self.model.running[task_id] = actor

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), order=st.sampled_from(sorted(STATUS)))
    def end(self, data: st.DataObject, order: str) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.model.running)))
        self.runner.run(self.model.running[task_id].tell, order)
        self._settle()
        self.model.finish(task_id, STATUS[order])

    @rule(task_id=IDS)
    def cancel(self, task_id: int) -> None:
        if not self.model.on:
            with pytest.raises(RunnerStoppedError):
                self.runner.cancel(task_id)
            return
        actor = self.model.running.get(task_id)
        decided = self.model.finished.get(task_id) == "cancelled"
        outcome = self.runner.cancel(task_id)
        if actor is not None:
            assert outcome
            assert actor.cancelled.wait(PATIENCE_S)
            self._see_cancelled(task_id, actor)
        elif task_id in self.model.pending:
            assert outcome
            self.model.finish(task_id, "cancelled")
        elif not decided:  # one that gave up by itself is cancelled too, but not by this
            assert not outcome

    def _see_cancelled(self, task_id: int, actor: Actor) -> None:
        if not actor.stubborn:
            self._settle()
            self.model.finish(task_id, "cancelled")
            return
        # Its outcome comes when the grace ends, which only a waiter is told.
        assert self.runner.wait_for_task(task_id, PATIENCE_S).status == "cancelled"
        del self.model.running[task_id]
        self.model.collected.append(task_id)
        self.model.abandoned.append(actor)

    @precondition(lambda self: self.model.on and self.model.abandoned)
    @rule()
    def let_an_abandoned_task_end(self) -> None:
        self.runner.run(self.model.abandoned.pop().tell, "value")
        self._settle()

    # -- results -----------------------------------------------------------------------------------

    @rule(count=st.integers(1, BOUND))
    def wait(self, count: int) -> None:
        available = len(self.model.finished)
        if count <= available:
            self.model.collect(self.runner.wait(count, timeout=0, with_timing=True))
        elif self.model.on:
            with pytest.raises(TimeoutError, match=f"for {count} results, only received {available}\\."):
                self.runner.wait(count, timeout=0)
        else:
            with pytest.raises(RunnerStoppedError):
                self.runner.wait(count)

    @rule(task_id=IDS)
    def wait_for_task(self, task_id: int) -> None:
        if task_id in self.model.finished:
            result = self.runner.wait_for_task(task_id, timeout=0)
            position = list(self.model.finished).index(task_id)
            if position >= len(self.model.finished) - self.model.unordered:
                self.model.unordered -= 1
            assert result.task_id == task_id
            self.model.deliver(result)
        elif task_id in self.model.in_use():
            with pytest.raises(TimeoutError, match=f"task_id={task_id}"):
                self.runner.wait_for_task(task_id, timeout=0)
        else:
            with pytest.raises(UnknownTaskError, match=f"task_id={task_id}"):
                self.runner.wait_for_task(task_id)

    @rule(count=st.integers(1, BOUND + 1))
    def iterate(self, count: int) -> None:
        results = []
        outcomes = self.runner.as_completed(timeout=0)
        try:
            for result in outcomes:
                results.append(result)
                if len(results) == count:
                    break
            else:
                assert not self.model.pending
                assert not self.model.running
        except TimeoutError:
            assert len(results) == len(self.model.finished)
            assert self.model.pending or self.model.running
        self.model.collect(results)

    @precondition(lambda self: self.model.on)
    @rule()
    def run(self) -> None:
        async def answer() -> int:
            return 42

        assert self.runner.run(answer) == 42

    # -- looking -----------------------------------------------------------------------------------

    @invariant()
    def every_number_is_as_predicted(self) -> None:
        assert self.runner.stats() == self.model.stats()

    def _settle(self) -> None:
        """Return when the loop has published what ended before."""
        self.runner.run(_several_turns)

    def teardown(self) -> None:
        """Find every id that was accepted exactly once; with which status, `deliver` has looked."""
        self.destroy(really=True)
        while self.model.finished:
            self.wait(1)
        self.every_number_is_as_predicted()
        assert sorted(self.model.collected + self.model.discarded) == sorted(self.model.submitted)


async def _several_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_runner_does_what_the_model_says(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Law: the numbers of ``stats()`` follow from what callers and tasks did; no id is lost or doubled."""
    machine = type("Machine", (RunnerMachine,), {"loop_factory": staticmethod(loop_factory)})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=50))
