"""Groups: several episodes of one item, which are one rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from areal_core import workflow_context
from areal_core.workflow_executor import RolloutOutcome
from conftest import MakeExecutor
from doors import Door, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Playing,
    accept_even,
    answering,
    balance,
    counts,
    park,
    trajectory_of,
)
from logged import LogLines


def member() -> int:
    place = workflow_context.get().sample_idx
    assert place is not None
    return place


def outcome_of(make_executor: MakeExecutor, play: Any, group_size: int, **config: Any) -> RolloutOutcome:
    executor = make_executor(consumer_batch_size=8, **config)
    executor.submit(7, Playing(play), group_size=group_size)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    balance(executor.ledger)
    assert executor.ledger.collected == 1
    assert executor.get_capacity() in (7, 8)
    return outcome


def test_members_of_different_length_are_padded_and_joined_in_order(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        place = member()
        for _ in range(3 - place):  # the last comes first
            await asyncio.sleep(0)
        one = trajectory_of(10 + place, length=place + 1, versions=0)
        return one | {"rewards": np.array([float(place)], np.float32)}

    trajectory = outcome_of(make_executor, play, 3).trajectory
    assert trajectory is not None
    assert trajectory["input_ids"].tolist() == [[10, 0, 0], [11, 11, 0], [12, 12, 12]]
    assert trajectory["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert trajectory["versions"].tolist() == [[0, -1, -1], [0, 0, -1], [0, 0, 0]]
    assert trajectory["rewards"].tolist() == [0.0, 1.0, 2.0]


def test_members_that_return_none_are_left_out(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        return trajectory_of(member()) if member() % 2 else None

    trajectory = outcome_of(make_executor, play, 4).trajectory
    assert trajectory is not None
    assert trajectory["input_ids"].tolist() == [[1], [3]]


def test_a_group_of_which_all_return_none_is_rejected(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        return None

    outcome = outcome_of(make_executor, play, 3)
    assert (outcome.status, outcome.reason) == ("rejected", "the workflow returned None")


async def _fail_in_the_second(data: int) -> Any:
    if member() == 1:
        await asyncio.sleep(0)
        raise LookupError("the second")
    if member() > 1:
        await park()
    return trajectory_of(0)


def test_a_member_that_fails_fails_the_group_and_the_others_are_cancelled(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    outcome = outcome_of(make_executor, _fail_in_the_second, 4)
    assert (outcome.status, outcome.trajectory) == ("failed", None)
    assert isinstance(outcome.error, LookupError)
    assert len([line for line in log_lines if line.level == "error"]) == 1


def test_the_slots_are_free_only_when_all_have_ended(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8, max_concurrent_rollouts=2)
    cleaning = Door()

    async def play(data: int) -> Any:
        if member() == 0:
            raise LookupError
        try:
            await park()
        finally:
            await cleaning.walk_through()

    executor.submit(1, Playing(play), group_size=2)
    executor.submit(2, answering)
    executor.submit(3, answering)
    cleaning.wait_for()
    turn_loop(executor.runner)
    assert executor.ledger.running == 1, "one slot is free, and was used again and again"
    assert executor.ledger.finished == 2
    assert executor.get_capacity() == 1
    cleaning.open()
    assert len(executor.wait(3, WAIT_S)) == 3
    assert executor.get_capacity() == 2


def test_a_member_that_swallows_its_cancellation_is_abandoned_when_its_grace_is_over(
    make_executor: MakeExecutor,
) -> None:
    door = Door()

    async def play(data: int) -> Any:
        if member() == 0:
            raise LookupError
        return await door.insist(trajectory_of(1))

    executor = make_executor(consumer_batch_size=8, cancel_grace=0.05)
    executor.submit(1, Playing(play), group_size=2)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.status, type(outcome.error)) == ("failed", LookupError)
    assert executor.runner.stats().abandoned == 1
    assert executor.get_capacity() == 8
    door.open()
    turn_loop(executor.runner)
    assert counts(executor.ledger) == {"submitted": 1, "collected": 1, "failed": 1}


def test_keep_rest_goes_on_without_the_one_that_failed(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    async def play(data: int) -> Any:
        if member() == 1:
            raise LookupError
        await asyncio.sleep(0)
        return trajectory_of(member())

    outcome = outcome_of(make_executor, play, 3, on_member_failure="keep_rest")
    assert (outcome.status, outcome.error, outcome.reason) == ("accepted", None, None)
    assert outcome.trajectory is not None
    assert outcome.trajectory["input_ids"].tolist() == [[0], [2]]
    assert (outcome.members_failed, type(outcome.member_error)) == (1, LookupError)


def test_each_member_that_keep_rest_goes_on_without_is_told_of(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    async def play(data: int) -> Any:
        if member() == 1:
            await asyncio.sleep(0)
            raise KeyError("the first by its place, though the last by time")
        if member() == 2:
            raise LookupError(f"of {member()}")
        if member() == 3:
            await park()
        return trajectory_of(member())

    config = {"on_member_failure": "keep_rest", "episode_timeout": 0.05}
    outcome = outcome_of(make_executor, play, 5, **config)
    assert (outcome.status, outcome.members_failed) == ("accepted", 3)
    assert isinstance(outcome.member_error, KeyError)
    begin = f"rollout_member_failed rollout={outcome.task_id} workflow=Playing seconds="
    lines = {place: log_lines.wait_for(f" member={place} ") for place in (1, 2, 3)}
    assert all(line.level == "warning" and line.message.startswith(begin) for line in lines.values())
    assert {place: type(line.error) for place, line in lines.items()} == {
        1: KeyError,
        2: LookupError,
        3: type(None),
    }
    assert "error=TimeoutError: rollout" in lines[3].message
    assert len(log_lines) == 3


def test_no_member_fails_of_a_group_that_fails_as_a_whole_or_that_somebody_cancels(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    async def play(data: int) -> Any:
        if member() == 1:
            raise LookupError
        await park()

    outcome = outcome_of(make_executor, play, 3)
    assert (outcome.status, outcome.members_failed, outcome.member_error) == ("failed", 0, None)
    executor = make_executor(consumer_batch_size=8, on_member_failure="keep_rest")
    executor.submit(7, Playing(play), group_size=3, task_id=7)
    log_lines.wait_for("rollout_member_failed")
    assert executor.cancel(7)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.status, outcome.members_failed) == ("cancelled", 1)
    assert sum("rollout_member_failed" in line.message for line in log_lines) == 1


def test_keep_rest_fails_with_the_first_failure_when_nothing_is_left(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        if member() == 0:
            return None
        raise LookupError(member())

    outcome = outcome_of(make_executor, play, 3, on_member_failure="keep_rest")
    assert outcome.status == "failed"
    assert isinstance(outcome.error, LookupError)
    assert outcome.error.args == (1,)


@pytest.mark.parametrize("keep", ["cancel", "keep_rest"])
def test_a_member_that_takes_too_long(make_executor: MakeExecutor, keep: str) -> None:
    async def play(data: int) -> Any:
        if member() == 0:
            await park()
        return trajectory_of(member())

    outcome = outcome_of(make_executor, play, 3, on_member_failure=keep, episode_timeout=0.05)
    if keep == "cancel":
        assert (outcome.status, type(outcome.error)) == ("timed_out", TimeoutError)
        assert "0.05" in str(outcome.error)
    else:
        assert outcome.trajectory is not None
        assert outcome.trajectory["input_ids"].tolist() == [[1], [2]]


def test_a_cancelled_group_ends_once_and_starts_no_more_members(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=2), Door()
    began: list[int] = []

    async def play(data: int) -> Any:
        began.append(member())
        await door.walk_through()

    executor.submit(1, Playing(play), group_size=4, task_id=1)
    door.wait_for(2)
    assert executor.cancel(1)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.status, began) == ("cancelled", [0, 1])
    assert executor.get_capacity() == 2


def test_a_group_larger_than_the_concurrency_runs_and_is_not_overtaken(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8, max_concurrent_rollouts=3)
    alive = most = 0
    order: list[int] = []

    async def play(data: int) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        order.append(data)
        await asyncio.sleep(0)
        alive -= 1
        return trajectory_of(data)

    workflow = Playing(play)
    executor.pause()
    for data in range(4):
        executor.submit(data, workflow, group_size=8)
    executor.resume()
    groups = executor.wait(4, WAIT_S)
    assert [group["input_ids"].tolist() for group in groups if group is not None] == [
        [[data]] * 8 for data in range(4)
    ]
    assert most == 3
    assert order == sorted(order)


def test_one_unit_of_budget_is_one_group(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=2), Door()
    for _ in range(3):
        executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=5)
    door.wait_for(10)
    turn_loop(executor.runner)
    assert counts(executor.ledger) == {"submitted": 3, "pending": 1, "running": 2}
    assert executor.staleness_manager.get_stats().running == 2
    door.open()
    executor.wait(2, WAIT_S)


@pytest.mark.parametrize(
    ("accept", "status"),
    [(accept_even, "rejected"), (lambda group: len(group["input_ids"]) == 3, "accepted")],
)
def test_the_filter_sees_the_whole_group(
    make_executor: MakeExecutor, accept: Callable[[dict[str, Any]], bool], status: str
) -> None:
    executor = make_executor(consumer_batch_size=8)
    executor.submit(7, answering, should_accept_fn=accept, group_size=3)
    assert executor.wait_outcomes(1, WAIT_S)[0].status == status


def test_members_that_do_not_fit_together_fail_the_group(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        one = trajectory_of(1)
        return one if member() else one | {"rewards": np.zeros(1)}

    outcome = outcome_of(make_executor, play, 2)
    assert (outcome.status, type(outcome.error)) == ("failed", ValueError)
    assert "rewards" in str(outcome.error)


def test_the_oldest_trained_token_of_any_member_is_the_groups_origin(make_executor: MakeExecutor) -> None:
    async def play(data: int) -> Any:
        return trajectory_of(1, versions=[-1, 5 - member()], length=2)

    executor = make_executor(Engine(5), consumer_batch_size=8, max_head_offpolicyness=2)
    executor.submit(7, Playing(play), group_size=3)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.status, outcome.origin, outcome.start_version) == ("accepted", 3, 5)
    executor.submit(7, Playing(play), group_size=4)
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert outcome.status == "failed"
    assert "version 2 made it" in str(outcome.error)
