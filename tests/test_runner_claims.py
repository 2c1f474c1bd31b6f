"""wait_for_task and as_completed, and how they share results with wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from areal_core._runner.job import Job
from areal_core._runner.shelf import Holding, Shelf
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats, TimedResult
from areal_core.errors import ArealError, RunnerStoppedError, UnknownTaskError
from conftest import MakeRunner
from doors import Caller, Door, break_down, fail, give, interrupt_when, start_blocked, turn_loop


def ids(results: list[TimedResult[Any]]) -> list[int]:
    return [result.task_id for result in results]


def timed(runner: AsyncTaskRunner[Any], count: int) -> list[TimedResult[Any]]:
    return runner.wait(count, with_timing=True)


def all_of(runner: AsyncTaskRunner[Any], timeout: float | None = 10.0) -> list[int]:
    return ids(list(runner.as_completed(timeout)))


def shelf_of(runner: AsyncTaskRunner[Any]) -> Shelf:
    assert runner._life is not None
    return runner._life.ledger.shelf


# -- wait_for_task ----------------------------------------------------------------------------------


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


def claim_by_hand(runner: AsyncTaskRunner[Any], task_id: int) -> None:
    """Leave a task as it is between the claim and the taking of its result."""
    shelf_of(runner).claim(task_id, Holding())


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


# -- as_completed -----------------------------------------------------------------------------------


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
@pytest.mark.parametrize("where", [Shelf.take_next, Job.timed_result])
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

    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take_next, meanwhile=another_comes):
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


# -- when the runner ends ---------------------------------------------------------------------------


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
