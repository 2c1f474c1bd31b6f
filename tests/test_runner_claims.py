"""wait_for_task, and how claimed results stay out of others' hands."""

from __future__ import annotations

import time
from typing import Any

import pytest

from areal_core._runner.job import Job
from areal_core._runner.shelf import Shelf
from areal_core.async_task_runner import RunnerStats, TimedResult
from areal_core.errors import ArealError, UnknownTaskError
from collecting import all_of, claim_by_hand, ids, shelf_of, timed
from conftest import MakeRunner
from doors import Caller, Door, fail, give, interrupt_when, start_blocked, turn_loop


def test_wait_for_task_gives_the_outcome_of_that_task(make_runner: MakeRunner) -> None:
    runner, door, error = make_runner(), Door(), ValueError("failed")
    runner.submit(give, "first", task_id=1)
    runner.submit(door.walk_through, "second", task_id=2)
    runner.submit(fail, error, task_id=3)
    turn_loop(runner)
    failed = runner.wait_for_task(3)
    assert (failed.task_id, failed.data, failed.status, failed.error) == (3, None, "failed", error)
    caller = start_blocked(runner.wait_for_task, 2)
    door.open()
    second = caller.result()
    assert (second.task_id, second.data, second.status, second.error) == (2, "second", "completed", None)
    assert second.create_time < second.finish_time
    assert runner.stats() == RunnerStats(submitted=3, finished=1, collected=2, state="running")
    assert runner.wait(1, timeout=0) == ["first"]


def test_a_claimed_task_is_invisible_to_wait_and_as_completed(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    claimant = start_blocked(runner.wait_for_task, 1)
    assert all_of(runner) == []
    with pytest.raises(TimeoutError, match="only received 0"):
        runner.wait(1, timeout=0)
    waiter = start_blocked(timed, runner, 1)
    door.open()
    assert claimant.result().task_id == 1
    turn_loop(runner)
    assert not waiter.is_done()
    runner.submit(give, task_id=2)
    assert ids(waiter.result()) == [2]


@pytest.mark.any_loop
def test_a_finished_task_can_be_claimed_and_is_invisible_from_then_on(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    claim_by_hand(runner, 1)
    with pytest.raises(TimeoutError, match=r"^Timed out waiting for 3 results, only received 2\.$"):
        runner.wait(3, timeout=0)
    assert ids(runner.wait(2, timeout=0, with_timing=True)) == [0, 2]
    assert all_of(runner) == []
    assert runner.stats() == RunnerStats(submitted=3, finished=1, collected=2, state="running")


@pytest.mark.any_loop
def test_a_claimed_task_that_finishes_wakes_no_waiter(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    claim_by_hand(runner, 1)
    waiter = start_blocked(runner.wait, 1)
    waiting = list(shelf_of(runner)._waiters)
    door.open()
    turn_loop(runner)
    assert runner.stats().finished == 1
    assert [waiter.gate.is_open for waiter in waiting] == [False]
    runner.submit(give, "unclaimed")
    assert waiter.result() == ["unclaimed"]


@pytest.mark.any_loop
def test_a_second_claimant_is_refused_and_the_first_is_unharmed(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "value", task_id=1)
    runner.submit(give, task_id=2)
    turn_loop(runner)
    claim_by_hand(runner, 2)
    first = start_blocked(runner.wait_for_task, 1)
    for task_id in (1, 2):
        with pytest.raises(ValueError, match="already waited for") as raised:
            runner.wait_for_task(task_id, timeout=0)
        assert str(raised.value) == (f"task_id={task_id} is already waited for by another wait_for_task()")
    with pytest.raises(TimeoutError):  # the refused did not take the claim with them
        runner.wait(1, timeout=0)
    door.open()
    assert first.result().data == "value"


@pytest.mark.any_loop
def test_an_id_that_is_not_outstanding_is_unknown(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(give, task_id=1)
    assert runner.wait(1, timeout=10) == [None]
    for task_id in (1, 2, -1, 2**80):
        with pytest.raises(UnknownTaskError) as raised:
            runner.wait_for_task(task_id)
        assert str(raised.value) == (
            f"task_id={task_id} is not outstanding: never accepted, or delivered already"
        )
        assert isinstance(raised.value, LookupError)
        assert isinstance(raised.value, ArealError)
    runner.submit(give, task_id=2)
    runner.wait_for_task(2)
    with pytest.raises(UnknownTaskError):
        runner.wait_for_task(2)


def test_a_pending_task_can_be_claimed(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, "value", task_id=1)
    caller = start_blocked(runner.wait_for_task, 1)
    assert all_of(runner) == []
    runner.resume()
    assert caller.result().data == "value"


@pytest.mark.any_loop
def test_a_claimed_task_that_is_cancelled_while_it_pends_reaches_its_claimant(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, task_id=1)
    caller = start_blocked(runner.wait_for_task, 1)
    assert runner.cancel(1)
    assert caller.result().status == "cancelled"


def test_a_timeout_releases_the_claim_and_the_result_keeps_its_place(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(3):
        runner.submit(door.walk_through, task_id=number)
    door.wait_for(3)
    before = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        runner.wait_for_task(1, timeout=0.05)
    assert time.monotonic() - before >= 0.05
    assert str(raised.value) == "Timed out waiting for task_id=1; its result keeps its place."
    waiter = start_blocked(timed, runner, 3)
    door.open()
    assert ids(waiter.result()) == [0, 1, 2]


@pytest.mark.any_loop
def test_a_released_claim_may_be_taken_again(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "value", task_id=1)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            runner.wait_for_task(1, timeout=0)
    door.open()
    assert runner.wait_for_task(1, timeout=10).data == "value"


def test_a_claim_released_wakes_those_who_wait_for_the_result(make_runner: MakeRunner) -> None:
    """The claimant is interrupted with the result in its hands, while others wait."""
    runner, callers = make_runner(), list[Caller[list[TimedResult[Any]]]]()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)

    def another_comes() -> None:
        callers.append(start_blocked(timed, runner, 3))

    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take_claimed, meanwhile=another_comes):
        runner.wait_for_task(1)
    assert ids(callers[0].result()) == [0, 1, 2]


@pytest.mark.any_loop
@pytest.mark.parametrize("where", [Shelf.claim, Shelf.take_claimed, Job.timed_result])
def test_an_interrupt_releases_the_claim_and_the_result_keeps_its_place(
    make_runner: MakeRunner, where: Any
) -> None:
    runner = make_runner()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    with pytest.raises(KeyboardInterrupt), interrupt_when(where):
        runner.wait_for_task(1)
    assert runner.stats() == RunnerStats(submitted=3, finished=3, state="running")
    assert ids(runner.wait(2, timeout=0, with_timing=True)) == [0, 1]
    assert runner.wait_for_task(2, timeout=0).task_id == 2
    assert runner.stats() == RunnerStats(submitted=3, collected=3, state="running")


@pytest.mark.any_loop
@pytest.mark.parametrize("state", ["pending", "running", "finished"])
def test_a_result_given_back_whose_id_is_in_use_again_is_delivered_beside_the_other(
    make_runner: MakeRunner, state: str
) -> None:
    runner, door = make_runner(), Door()

    def use_the_id_again() -> None:
        if state == "pending":
            runner.pause()
        runner.submit(door.walk_through, "second", task_id=7)
        if state != "pending":
            door.wait_for()
        if state == "finished":
            door.open()
        turn_loop(runner)

    for again in range(2):
        runner.submit(give, "first", task_id=7)
        turn_loop(runner)
        with pytest.raises(KeyboardInterrupt), interrupt_when(Job.timed_result, meanwhile=use_the_id_again):
            runner.wait(1, with_timing=True)
        stats = runner.stats()
        assert (stats.submitted, stats.collected) == (2 * again + 2, 2 * again)
        assert stats.pending + stats.running + stats.finished == 2
        door.open()
        runner.resume()
        if again:
            assert runner.wait_for_task(7, timeout=10).data == "second"
            assert runner.wait(1, timeout=10) == ["first"]
        else:
            assert runner.wait(2, timeout=10) == ["first", "second"]
        door = Door()


def test_a_claim_released_leaves_other_claims_as_they_are(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(4):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    for number in range(3):
        claim_by_hand(runner, number)
    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.claim):
        runner.wait_for_task(3)
    with pytest.raises(TimeoutError, match="only received 1"):
        runner.wait(2, timeout=0)
    assert ids(timed(runner, 1)) == [3]
    assert all_of(runner) == []


@pytest.mark.any_loop
def test_an_interrupted_claimant_of_an_unfinished_task_leaves_it_to_others(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    runner.submit(door.walk_through, task_id=2)
    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.claim):
        runner.wait_for_task(1)
    with pytest.raises(TimeoutError):
        runner.wait_for_task(2, timeout=0)
    door.open()
    assert sorted(all_of(runner)) == [1, 2]


@pytest.mark.any_loop
def test_claims_of_many_tasks_are_each_served(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(8):
        runner.submit(door.walk_through, number, task_id=number)
    callers = [start_blocked(runner.wait_for_task, number) for number in range(0, 8, 2)]
    waiter = start_blocked(runner.wait, 4)
    door.open()
    assert [caller.result().data for caller in callers] == [0, 2, 4, 6]
    assert waiter.result() == [1, 3, 5, 7]
    assert runner.stats() == RunnerStats(submitted=8, collected=8, state="running")


@pytest.mark.any_loop
def test_wait_for_task_polls_with_a_timeout_of_zero(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    with pytest.raises(TimeoutError):
        runner.wait_for_task(1, timeout=0)
    door.open()
    turn_loop(runner)
    assert runner.wait_for_task(1, timeout=0).task_id == 1
