"""Whoever waits when the runner ends, and whoever begins afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from areal_core.async_task_runner import RunnerStats
from areal_core.errors import RunnerStoppedError, UnknownTaskError
from collecting import all_of, claim_by_hand, ids, timed
from conftest import MakeRunner
from doors import LONG_S, Caller, Door, break_down, give, start_blocked, turn_loop, work


def test_whoever_is_blocked_when_the_runner_is_destroyed_raises_and_consumes_nothing(
    make_runner: MakeRunner,
) -> None:
    runner, door = make_runner(), Door()
    for number in range(3):
        runner.submit(door.walk_through, task_id=number)
    door.wait_for(3)
    callers: list[Caller[Any]] = [
        start_blocked(runner.wait_for_task, 1),
        start_blocked(runner.wait, 2),
        start_blocked(all_of, runner, None),
    ]
    runner.destroy()  # makes three cancelled outcomes
    for caller in callers:
        error = caller.error()
        assert type(error) is RunnerStoppedError
        assert str(error) == "the runner was destroyed; initialize() starts it again"
    assert runner.stats() == RunnerStats(submitted=3, finished=3, state="stopped")
    assert runner.wait_for_task(1).status == "cancelled"
    assert sorted(all_of(runner)) == [0, 2]
    assert all_of(runner) == []


@pytest.mark.any_loop
@pytest.mark.parametrize("how", ["wait", "wait_for_task", "as_completed"])
def test_whoever_is_blocked_raises_when_the_runner_begins_to_end(make_runner: MakeRunner, how: str) -> None:
    runner, door, cleaning = make_runner(cancel_grace=3 * LONG_S), Door(), Door()
    runner.submit(work, door, cleaning, [], task_id=1)
    door.wait_for()
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: runner.wait(1),
        "wait_for_task": lambda: runner.wait_for_task(1),
        "as_completed": lambda: all_of(runner, None),
    }
    caller = start_blocked(calls[how])
    ender = start_blocked(runner.destroy)
    cleaning.wait_for()
    assert type(caller.error()) is RunnerStoppedError
    assert not ender.is_done()
    cleaning.open()
    ender.result()


@pytest.mark.any_loop
@pytest.mark.parametrize("how", ["wait", "wait_for_task", "as_completed"])
def test_whoever_was_blocked_raises_even_if_the_ending_made_what_it_needed(
    make_runner: MakeRunner, how: str
) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, task_id=1)
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: runner.wait(1),
        "wait_for_task": lambda: runner.wait_for_task(1),
        "as_completed": lambda: all_of(runner),
    }
    caller = start_blocked(calls[how])
    assert runner._life is not None
    with runner._life.ledger._lock:  # whoever is woken comes after both
        runner.cancel(1)
        runner._life.request_end()
    assert type(caller.error()) is RunnerStoppedError
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
    assert ids(timed(runner, 1)) == [1]


def test_what_begins_after_destroy_returns_what_is_there_or_raises_at_once(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(4):
        runner.submit(give, number, task_id=number)
    turn_loop(runner)
    runner.destroy()
    for timeout in (None, 0, 10):
        with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
            runner.wait(5, timeout=timeout)
    assert runner.wait(2) == [0, 1]
    assert runner.wait_for_task(3).data == 3
    with pytest.raises(UnknownTaskError):
        runner.wait_for_task(3)
    assert all_of(runner) == [2]
    for timeout in (None, 0, 10):
        with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
            runner.wait(1, timeout=timeout)


@pytest.mark.any_loop
def test_an_iterator_outlives_destroy_between_two_steps(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    results = runner.as_completed()
    assert next(results).task_id == 0
    runner.destroy()
    assert ids(list(results)) == [1, 2]


@pytest.mark.any_loop
def test_an_iterator_of_a_former_life_raises_the_end_of_that_life(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    results = runner.as_completed()
    assert next(results).task_id == 0
    claim_by_hand(runner, 2)
    runner.destroy()
    runner.initialize()
    runner.submit(give, task_id=1)
    with pytest.raises(RunnerStoppedError, match="destroyed"):
        next(results)
    assert all_of(runner) == [1]


def test_whoever_is_blocked_when_the_runner_dies_is_told_the_cause(make_runner: MakeRunner) -> None:
    runner, door, fault = make_runner(), Door(), OSError("broken")
    for number in range(3):
        runner.submit(door.walk_through, task_id=number)
    callers: list[Caller[Any]] = [
        start_blocked(runner.wait_for_task, 1),
        start_blocked(runner.wait, 2),
        start_blocked(all_of, runner, None),
    ]
    break_down(runner, fault)
    for caller in callers:
        error = caller.error()
        assert str(error) == "the runner died: OSError('broken'); initialize() starts it again"
        assert error is not None
        assert error.__cause__ is fault
    assert len({id(caller.error()) for caller in callers}) == 3
    assert sorted(all_of(runner)) == [0, 1, 2]


@pytest.mark.any_loop
def test_a_result_is_the_tasks_own_object(make_runner: MakeRunner) -> None:
    runner, value = make_runner(), object()

    async def own() -> object:
        await asyncio.sleep(0)
        return value

    runner.submit(own, task_id=1)
    assert runner.wait_for_task(1, timeout=10).data is value
