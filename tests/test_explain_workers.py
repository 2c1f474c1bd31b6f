"""What keeps a run from going on is named wherever its episodes are played, as far as it is known here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from areal_core.config import InferenceEngineConfig
from areal_core.explain import StuckRollout
from areal_core.types import GenerationHyperparameters
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow
from conftest import MakeExecutor
from doors import Door, turn_loop
from executor_tools import WAIT_S, Engine, Playing, ReplyingEngine, answering, only, park, trajectory_of
from logged import LogLines
from near_workers import NearExecutor

WARNING_S = 0.3
THERE = "(worker 1 has it, and alone knows where in its workflow it is)"


class Make(Protocol):
    """The type of fixture ``make``."""

    def __call__(self, engine: Any = None, **config: Any) -> WorkflowExecutor: ...


@pytest.fixture(params=["here", "at a worker"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(place: str, make_executor: MakeExecutor, loop_factory: Callable[[], Any]) -> Iterator[Make]:
    """Make initialized executors whose episodes are played at *place*; no Ray is needed for that."""
    with contextlib.ExitStack() as made:

        def at_a_worker(engine: Any = None, **config: Any) -> WorkflowExecutor:
            executor = NearExecutor(InferenceEngineConfig(**config), engine or Engine(), loop_factory)
            made.callback(executor.destroy, 10.0)
            executor.initialize()
            executor.join()
            return executor

        yield make_executor if place == "here" else at_a_worker


def when_it_is(executor: WorkflowExecutor, stage: str) -> StuckRollout:
    """Wait until the only rollout is at *stage*; return it."""
    deadline = time.monotonic() + WAIT_S
    while True:  # a worker tells it a bit later
        rollouts = executor.explain().rollouts
        if rollouts and rollouts[0].stage.startswith(stage):
            (rollout,) = rollouts
            return rollout
        assert time.monotonic() < deadline, rollouts


def check_stack(rollout: StuckRollout, place: str, innermost: str) -> None:
    """Fail unless the stack of *rollout* says where it is, as far as that is known here."""
    if place == "here":
        assert innermost in rollout.stack and THERE not in rollout.stack
    else:
        assert rollout.stack == THERE


async def score_never(prompt: list[int], output: list[int], data: Any) -> float:
    await asyncio.get_running_loop().create_future()
    return 1.0


def test_a_reward_that_never_comes_is_named(make: Make, place: str, log_lines: LogLines) -> None:
    executor = make(ReplyingEngine(), stuck_warning=WARNING_S, cancel_grace=0.5)
    gconfig = GenerationHyperparameters(max_new_tokens=2)
    workflow = SingleTurnWorkflow(score_never, gconfig, reward_in="loop", reward_timeout=None)
    executor.submit({"input_ids": [9_137], "data_id": "item-7"}, workflow)

    rollout = when_it_is(executor, "waiting for its reward")

    line = log_lines.wait_for("rollout_stuck ", WAIT_S)
    assert rollout.data_id == "item-7" and rollout.workflow == "SingleTurnWorkflow"
    check_stack(rollout, place, " score_never")
    assert line.level == "warning" and "data_id=item-7" in line.message
    for shown in rollout.stack.splitlines():
        assert shown in line.message
    assert not [one for one in log_lines if "explaining_failed" in one.message]


def test_a_filter_that_never_answers_is_named(make: Make, place: str) -> None:
    executor = make()
    executor.submit(1, answering, should_accept_fn=lambda trajectory: park())
    rollout = when_it_is(executor, "waiting for should_accept_fn")
    check_stack(rollout, place, " park")


def test_one_that_was_told_to_end_and_does_not_is_told_to_have_been_told(make: Make, place: str) -> None:
    executor, door = make(), Door()
    executor.submit(trajectory_of(1), Playing(door.insist), task_id=1)
    door.wait_for()
    assert "told to end" not in only(executor.explain()).stage
    assert executor.cancel(1)
    door.wait_for()
    rollout = when_it_is(executor, "playing its workflow")
    assert rollout.stage == "playing its workflow, though it was told to end (cancelled)"
    check_stack(rollout, place, " Door.insist")
    door.open()


def test_of_a_group_it_is_said_how_many_run(make: Make, place: str) -> None:
    executor, door = make(), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=3)
    door.wait_for(3)
    rollout = when_it_is(executor, "playing its workflow")
    assert rollout.members == "3 of a group of 3 run"
    check_stack(rollout, place, " Door.walk_through")
    door.open()


def test_why_nothing_more_starts_is_said_while_something_runs(make: Make) -> None:
    executor, door = make(max_concurrent_rollouts=1, consumer_batch_size=8), Door()
    for _ in range(2):
        executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for()
    found = executor.explain_capacity()
    assert (found.running, found.pending) == (1, 1)
    assert found.kinds == ("concurrency",)
    door.open()
    executor.wait(2, WAIT_S)
    assert executor.explain_capacity().running == 0


def test_the_rest_of_a_group_that_waits_for_slots_has_no_task(make: Make) -> None:
    executor, door = make(consumer_batch_size=8, max_concurrent_rollouts=1), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=2)
    door.wait_for()
    executor.pause()
    door.open()
    rollout = when_it_is(executor, "waiting for slots for the rest of its group")
    assert rollout.stack == "(no task)"


@pytest.mark.any_loop
def test_what_no_worker_has_room_for_is_with_none(loop_factory: Callable[[], Any]) -> None:
    executor = NearExecutor(InferenceEngineConfig(), Engine(), loop_factory)
    executor.initialize()
    try:
        executor.submit(1, answering)
        turn_loop(executor.runner)
        rollout = only(executor.explain())
        assert (rollout.stage, rollout.stack) == ("waiting for room at a worker", "(no task)")
        executor.join()
        executor.wait(1, WAIT_S)
    finally:
        executor.destroy(10.0)
