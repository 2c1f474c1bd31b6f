"""as_completed: what it gives, when it ends, and that it loses nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest

from areal_core._runner.job import Job
from areal_core._runner.shelf import Holding, Shelf
from areal_core.async_task_runner import RunnerStats, TimedResult
from collecting import all_of, claim_by_hand, ids, shelf_of, timed
from conftest import MakeRunner
from doors import Caller, Door, give, interrupt_when, start_blocked, turn_loop


def test_as_completed_gives_outcomes_as_tasks_finish_and_ends_with_the_last(make_runner: MakeRunner) -> None:
    runner, doors = make_runner(), [Door() for _ in range(3)]
    for number, door in enumerate(doors):
        runner.submit(door.walk_through, f"value {number}", task_id=number)
    results = []
    following = {None: 2, 2: 0, 0: 1}
    doors[2].open()
    for result in runner.as_completed(timeout=10):
        assert isinstance(result, TimedResult)
        results.append((result.task_id, result.data, result.status, result.error))
        if result.task_id in following:
            doors[following[result.task_id]].open()
    assert results == [(number, f"value {number}", "completed", None) for number in (2, 0, 1)]
    assert runner.stats() == RunnerStats(submitted=3, collected=3, state="running")


@pytest.mark.any_loop
def test_as_completed_of_nothing_is_empty(make_runner: MakeRunner) -> None:
    runner = make_runner()
    assert all_of(runner, timeout=0) == []
    assert all_of(runner, timeout=None) == []


@pytest.mark.any_loop
def test_as_completed_includes_tasks_submitted_meanwhile(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(give, task_id=0)
    seen = []
    for result in runner.as_completed(timeout=10):
        seen.append(result.task_id)
        if result.task_id < 5:
            runner.submit(give, task_id=result.task_id + 1)
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.any_loop
def test_leaving_the_loop_early_leaves_the_rest(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(4):
        runner.submit(give, number, task_id=number)
    turn_loop(runner)
    for result in runner.as_completed():
        assert result.task_id == 0
        assert runner.stats() == RunnerStats(submitted=4, finished=3, collected=1, state="running")
        break
    assert runner.wait(3, timeout=0) == [1, 2, 3]


@pytest.mark.any_loop
def test_two_iterators_share_the_results(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(20):
        runner.submit(door.walk_through, task_id=number)
    callers = [start_blocked(all_of, runner) for _ in range(2)]
    door.open()
    seen = [task_id for caller in callers for task_id in caller.result()]
    assert sorted(seen) == list(range(20))


@pytest.mark.any_loop
def test_an_iterator_ends_when_another_takes_the_last_result(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    runner.submit(door.walk_through, task_id=2)
    waiter = start_blocked(runner.wait, 2)
    iterator = start_blocked(all_of, runner)
    door.open()
    shared = len(iterator.result())
    if shared:  # the iterator was faster: it has both, and the waiter waits for two more
        assert shared == 2
        runner.submit(give)
        runner.submit(give)
    assert len(waiter.result()) == 2


@pytest.mark.any_loop
def test_an_iterator_ends_when_the_last_unclaimed_task_is_claimed(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    iterator = start_blocked(all_of, runner, None)
    claimant = start_blocked(runner.wait_for_task, 1)
    assert iterator.result() == []
    door.open()
    assert claimant.result().task_id == 1


@pytest.mark.any_loop
def test_an_iterator_that_waits_is_served_by_a_cancelled_pending_task(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, task_id=1)
    iterator = start_blocked(all_of, runner, None)
    runner.cancel(1)
    assert iterator.result() == [1]


@pytest.mark.any_loop
def test_an_iterator_is_not_woken_by_what_it_cannot_take(make_runner: MakeRunner) -> None:
    runner, door, other = make_runner(), Door(), Door()
    runner.submit(door.walk_through, task_id=1)
    runner.submit(other.walk_through, task_id=2)
    other.wait_for()
    claim_by_hand(runner, 2)
    iterator = start_blocked(all_of, runner, None)
    waiting = list(shelf_of(runner)._waiters)
    other.open()
    turn_loop(runner)
    assert runner.stats().finished == 1
    assert [waiter.gate.is_open for waiter in waiting] == [False]
    door.open()
    assert iterator.result() == [1]


def test_the_timeout_covers_the_whole_iteration_from_the_call(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(give, task_id=1)
    runner.submit(door.walk_through, task_id=2)
    before = time.monotonic()
    results = runner.as_completed(timeout=0.1)
    assert next(results).task_id == 1
    with pytest.raises(TimeoutError, match=r"^Timed out waiting for the next of 1 outstanding tasks\.$"):
        next(results)
    assert 0.1 <= time.monotonic() - before < 5
    door.open()
    turn_loop(runner)
    results = runner.as_completed(timeout=0)
    assert next(results).task_id == 2
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.any_loop
def test_a_passed_timeout_does_not_keep_what_is_there_from_being_taken(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(3):
        runner.submit(give, task_id=number)
    runner.submit(door.walk_through, task_id=3)
    turn_loop(runner)
    results = runner.as_completed(timeout=0)
    assert [next(results).task_id for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError):
        next(results)
    door.open()


@pytest.mark.any_loop
@pytest.mark.parametrize("where", [Shelf.take, Job.timed_result])
def test_an_interrupted_iterator_loses_nothing(make_runner: MakeRunner, where: Any) -> None:
    runner = make_runner()
    for number in range(3):
        runner.submit(give, task_id=number)
    turn_loop(runner)
    results = runner.as_completed()
    assert next(results).task_id == 0
    with pytest.raises(KeyboardInterrupt), interrupt_when(where):
        next(results)
    assert runner.stats() == RunnerStats(submitted=3, finished=2, collected=1, state="running")
    assert all_of(runner) == [1, 2]


@pytest.mark.any_loop
def test_what_an_interrupted_iterator_gives_back_goes_to_the_one_who_waits(make_runner: MakeRunner) -> None:
    runner, callers = make_runner(), list[Caller[list[TimedResult[Any]]]]()
    for number in range(2):
        runner.submit(give, task_id=number)
    turn_loop(runner)

    def another_comes() -> None:
        callers.append(start_blocked(timed, runner, 2))

    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take, meanwhile=another_comes):
        next(runner.as_completed())
    assert ids(callers[0].result()) == [0, 1]


@pytest.mark.any_loop
def test_an_iterator_does_not_end_while_another_may_give_back_what_it_took(make_runner: MakeRunner) -> None:
    """The interrupted one's results are seen by one who would else find nothing outstanding."""
    runner = make_runner()
    runner.submit(give, task_id=1)
    turn_loop(runner)
    holding, shelf = Holding(), shelf_of(runner)
    shelf.take(1, None, holding)
    shelf.returned.append(holding)
    assert all_of(runner) == [1]


def test_an_iterator_may_not_be_stepped_on_the_loop_thread(make_runner: MakeRunner) -> None:
    """It was made elsewhere, and would wait there for a task that then never runs."""
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    results = runner.as_completed(timeout=1)

    async def step() -> None:
        next(results)

    with pytest.raises(RuntimeError, match=r"^as_completed\(\) on the runner's own loop thread"):
        runner.run(step)
    door.open()
    assert all_of(runner) == [1]
