"""wait: counts, timeouts, the order of results, several waiters, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from fractions import Fraction
from numbers import Real
from types import FrameType
from typing import Any

import pytest

from areal_core._runner.gate import Gate
from areal_core._runner.job import Job
from areal_core._runner.shelf import Holding, Shelf
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats, TaskQueueFullError, TimedResult
from areal_core.errors import RunnerStoppedError
from collecting import shelf_of
from conftest import MakeRunner
from doors import Blockade, Caller, Door, fail, give, interrupt_when, start_blocked, turn_loop

# -- what comes back --------------------------------------------------------------------------------


def test_values_come_in_the_order_the_tasks_finished(make_runner: MakeRunner) -> None:
    runner, doors = make_runner(), [Door() for _ in range(4)]
    for number, door in enumerate(doors):
        runner.submit(door.walk_through, number)
    for door in doors:
        door.wait_for()
    for number in (2, 0, 3, 1):
        doors[number].open()
        turn_loop(runner)
    assert runner.wait(3, timeout=10) == [2, 0, 3]
    assert runner.wait(1, timeout=10) == [1]


def test_those_that_finish_in_one_turn_of_the_loop_come_in_their_order_too(make_runner: MakeRunner) -> None:
    runner, blockade, door = make_runner(), Blockade(), Door()
    for number in range(50):
        runner.submit(door.walk_through, number)
    door.wait_for(50)
    runner.submit(blockade.block, "blocker")
    blockade.wait_until_entered()
    door.open()
    blockade.lift()
    assert runner.wait(51, timeout=10) == ["blocker", *range(50)]


@pytest.mark.any_loop
def test_a_task_without_a_value_gives_none(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(fail, ValueError("failed"))
    turn_loop(runner)
    runner.submit(door.walk_through, "cancelled", task_id=1)
    door.wait_for()
    runner.cancel(1)
    turn_loop(runner)
    runner.with_options(task_timeout=0.001).submit(door.walk_through, "timed out")
    assert runner.wait(3, timeout=10) == [None, None, None]


@pytest.mark.any_loop
@pytest.mark.parametrize("positional", [True, False])
def test_with_timing_gives_timed_results(make_runner: MakeRunner, positional: bool) -> None:
    runner = make_runner()
    before = time.monotonic_ns()
    runner.submit(give, "value", task_id=3)
    runner.submit(give, "other", task_id=4)
    results = runner.wait(2, 10.0, True) if positional else runner.wait(2, timeout=10.0, with_timing=True)
    after = time.monotonic_ns()
    assert [type(result) for result in results] == [TimedResult, TimedResult]
    assert [(result.task_id, result.data) for result in results] == [(3, "value"), (4, "other")]
    for result in results:
        assert (result.status, result.error) == ("completed", None)
        assert before < result.create_time < result.finish_time < after


@pytest.mark.any_loop
def test_wait_gives_no_more_than_it_was_asked_for(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for number in range(5):
        runner.submit(give, number)
    turn_loop(runner)
    assert runner.wait(2, timeout=10) == [0, 1]
    assert runner.stats() == RunnerStats(submitted=5, finished=3, collected=2, state="running")
    assert runner.wait(3, timeout=10) == [2, 3, 4]
    assert runner.stats() == RunnerStats(submitted=5, finished=0, collected=5, state="running")


# -- timeouts ---------------------------------------------------------------------------------------


def test_a_timeout_says_how_many_there_are_and_consumes_none(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(3):
        runner.submit(give, number)
    for number in range(3, 5):
        runner.submit(door.walk_through, number)
    before = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        runner.wait(5, timeout=0.1)
    assert str(raised.value) == "Timed out waiting for 5 results, only received 3."
    assert time.monotonic() - before >= 0.1
    assert runner.stats() == RunnerStats(submitted=5, running=2, finished=3, state="running")
    assert runner.wait(3, timeout=0) == [0, 1, 2]
    door.open()
    assert runner.wait(2, timeout=10) == [3, 4]


@pytest.mark.any_loop
def test_without_a_timeout_it_waits_however_long_the_task_takes(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(asyncio.sleep, 1.1, "late")
    assert runner.wait(1) == ["late"]


@pytest.mark.any_loop
def test_what_comes_just_as_the_timeout_passes_is_taken(make_runner: MakeRunner) -> None:
    runner = make_runner()

    def finish_late(frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is Gate.wait.__code__:
            sys.setprofile(None)
            runner.submit(give, "late")
            turn_loop(runner)

    sys.setprofile(finish_late)
    try:
        assert runner.wait(1, timeout=0.01) == ["late"]
    finally:
        sys.setprofile(None)


@pytest.mark.any_loop
def test_a_timeout_of_zero_polls(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, 1)
    with pytest.raises(TimeoutError, match=r"^Timed out waiting for 1 results, only received 0\.$"):
        runner.wait(1, timeout=0)
    door.open()
    assert runner.wait(1, timeout=10) == [1]
    runner.submit(give, 2)
    turn_loop(runner)
    assert runner.wait(1, timeout=0.0) == [2]


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [None, math.inf, 10, 10.0, Fraction(10), 1e300])
def test_a_timeout_may_be_any_real_number_or_none(make_runner: MakeRunner, timeout: Any) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, 1)
    caller = start_blocked(runner.wait, 1, timeout)
    door.open()
    assert caller.result() == [1]


class Seconds:
    """A number that is registered as real, as numpy's are, and no float."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __float__(self) -> float:
        return self.seconds

    def __repr__(self) -> str:
        return f"Seconds({self.seconds})"


Real.register(Seconds)


@pytest.mark.any_loop
def test_a_number_of_another_library_is_a_timeout_too(make_runner: MakeRunner) -> None:
    runner = make_runner()
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=Seconds(0.0))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"^timeout=Seconds\(-1.0\) has to be at least 0 seconds, or None$"):
        runner.wait(1, timeout=Seconds(-1.0))  # type: ignore[call-overload]


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [-1, -0.001, -math.inf, math.nan])
def test_a_timeout_below_zero_is_a_value_error(make_runner: MakeRunner, timeout: float) -> None:
    runner = make_runner()
    task_id = runner.submit(give)
    waits = (
        lambda: runner.wait(1, timeout=timeout),
        lambda: runner.wait_for_task(task_id, timeout=timeout),
        lambda: runner.as_completed(timeout=timeout),
    )
    for wait in waits:
        with pytest.raises(ValueError, match="timeout=") as raised:
            wait()
        assert str(raised.value) == f"timeout={timeout!r} has to be at least 0 seconds, or None"
    assert runner.wait(1, timeout=10) == [None]


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [True, False, "1", 1j, [1]])
def test_a_timeout_that_is_no_number_is_a_type_error(make_runner: MakeRunner, timeout: Any) -> None:
    runner = make_runner()
    task_id = runner.submit(give)
    waits = (
        lambda: runner.wait(1, timeout=timeout),
        lambda: runner.wait_for_task(task_id, timeout=timeout),
        lambda: runner.as_completed(timeout=timeout),
    )
    for wait in waits:
        with pytest.raises(TypeError) as raised:
            wait()
        assert str(raised.value) == f"timeout has to be seconds or None, not {timeout!r}"
    assert runner.wait(1, timeout=10) == [None]


# -- counts -----------------------------------------------------------------------------------------


@pytest.mark.any_loop
@pytest.mark.parametrize("count", [0, -1, -(10**30)])
def test_a_count_below_one_is_a_value_error(make_runner: MakeRunner, count: int) -> None:
    with pytest.raises(ValueError, match=rf"^count={count} has to be at least 1$"):
        make_runner().wait(count, timeout=0)


@pytest.mark.any_loop
@pytest.mark.parametrize("count", [True, False, 1.0, "1", None])
def test_a_count_that_is_no_int_is_a_type_error(make_runner: MakeRunner, count: Any) -> None:
    with pytest.raises(TypeError, match=rf"^count has to be an int, not {count!r}$"):
        make_runner().wait(count, timeout=0)


@pytest.mark.any_loop
def test_a_count_above_the_bound_is_a_value_error_and_the_bound_itself_is_not(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner(max_queue_size=3)
    for number in range(3):
        runner.submit(give, number)
    with pytest.raises(ValueError, match="max_queue_size") as raised:
        runner.wait(4, timeout=0)
    assert str(raised.value) == (
        "count=4 exceeds max_queue_size=3, so that many are never there; "
        "wait for fewer, or raise max_queue_size"
    )
    assert runner.wait(3, timeout=10) == [0, 1, 2]


def test_with_fewer_outstanding_than_asked_for_it_waits_for_what_others_submit(
    make_runner: MakeRunner,
) -> None:
    runner, door = make_runner(), Door()
    caller = start_blocked(runner.wait, 3)
    runner.submit(give, 1)
    runner.submit(door.walk_through, 2)
    door.wait_for()
    turn_loop(runner)
    assert not caller.is_done()
    runner.submit(give, 3)
    turn_loop(runner)
    assert not caller.is_done()
    door.open()
    assert caller.result() == [1, 3, 2]


# -- several waiters --------------------------------------------------------------------------------


def test_the_waiter_who_can_be_served_is_and_the_other_is_not_even_woken(make_runner: MakeRunner) -> None:
    runner = make_runner()
    many = start_blocked(runner.wait, 3)
    waiting = list(shelf_of(runner)._waiters)
    for number in range(2):
        runner.submit(give, number)
    turn_loop(runner)
    assert runner.stats().finished == 2
    assert runner.wait(1, timeout=10) == [0]
    assert [waiter.gate.is_open for waiter in waiting] == [False]
    two = start_blocked(runner.wait, 2)
    runner.submit(give, 2)
    assert two.result() == [1, 2]
    assert not many.is_done()
    for number in range(3, 6):
        runner.submit(give, number)
    assert many.result() == [3, 4, 5]


@pytest.mark.any_loop
def test_of_two_waiters_for_the_same_result_one_gets_it_and_the_other_goes_on_waiting(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    callers = [start_blocked(runner.wait, 1) for _ in range(2)]
    runner.submit(give, "first")
    turn_loop(runner)
    runner.submit(give, "second")
    assert sorted(str(caller.result()) for caller in callers) == ["['first']", "['second']"]
    assert shelf_of(runner)._waiters == []


@pytest.mark.any_loop
def test_many_waiters_share_many_results_and_each_result_has_one_receiver(make_runner: MakeRunner) -> None:
    runner = make_runner(max_queue_size=200)
    callers = [start_blocked(runner.wait, count) for count in (1, 2, 3, 4, 5, 5, 4, 3, 2, 1)]
    for number in range(30):
        runner.submit(give, number)
    received = [number for caller in callers for number in caller.result()]
    assert sorted(map(int, map(str, received))) == list(range(30))
    assert runner.stats() == RunnerStats(submitted=30, collected=30, state="running")


@pytest.mark.any_loop
def test_a_waiter_that_timed_out_is_forgotten(make_runner: MakeRunner) -> None:
    runner = make_runner()
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.01)
    assert shelf_of(runner)._waiters == []


# -- interrupts -------------------------------------------------------------------------------------


def test_an_interrupt_after_the_results_were_taken_puts_each_back_in_its_place(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    for number in range(4):
        runner.submit(give, number, task_id=9 - number)
    turn_loop(runner)
    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take):
        runner.wait(2)
    assert runner.stats() == RunnerStats(submitted=4, finished=4, state="running")
    with pytest.raises(KeyboardInterrupt), interrupt_when(Job.timed_result):
        runner.wait(4, with_timing=True)
    assert runner.stats() == RunnerStats(submitted=4, finished=4, state="running")
    with pytest.raises(ValueError, match="task_id=9 is in use"):
        runner.submit(give, task_id=9)
    assert runner.wait(3, timeout=0) == [0, 1, 2]
    assert runner.wait(1, timeout=0) == [3]


def test_what_an_interrupted_waiter_gives_back_goes_to_the_one_who_waits(make_runner: MakeRunner) -> None:
    runner, callers = make_runner(), list[Caller[list[Any]]]()
    for number in range(2):
        runner.submit(give, number)
    turn_loop(runner)

    def others_come() -> None:
        callers.append(start_blocked(runner.wait, 2))

    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take, meanwhile=others_come):
        runner.wait(2)
    assert callers[0].result() == [0, 1]


def give_back(runner: AsyncTaskRunner[Any], count: int) -> None:
    """Leave *count* results as a second interrupt does, one that comes while they are being put back."""
    holding, shelf = Holding(), shelf_of(runner)
    shelf.take(count, None, holding)
    shelf.returned.append(holding)


@pytest.mark.any_loop
def test_what_came_back_is_there_for_whoever_looks_next(make_runner: MakeRunner) -> None:
    runner = make_runner(max_queue_size=3)
    for number in range(3):
        runner.submit(give, number, task_id=number)
    turn_loop(runner)
    give_back(runner, 2)
    assert runner.stats() == RunnerStats(submitted=3, finished=3, state="running")
    give_back(runner, 2)
    with pytest.raises(TaskQueueFullError, match="3 finished"):
        runner.submit(give)
    give_back(runner, 2)
    assert runner.wait(1, timeout=0) == [0]
    give_back(runner, 1)
    assert runner.wait_for_task(1, timeout=0).data == 1
    give_back(runner, 1)
    assert [result.data for result in runner.as_completed(timeout=0)] == [2]
    runner.submit(give, 3, task_id=3)
    turn_loop(runner)
    give_back(runner, 1)
    runner.destroy()
    runner.initialize()
    assert runner.stats() == RunnerStats(submitted=4, collected=3, discarded=1, state="running")


@pytest.mark.any_loop
def test_results_of_the_same_nanosecond_keep_their_order_when_they_are_put_back(
    make_runner: MakeRunner,
) -> None:
    """Tasks that never started end together when the runner does."""
    runner = make_runner()
    runner.pause()
    for number in range(3):
        runner.submit(give, task_id=9 - number)
    runner.destroy()
    with pytest.raises(KeyboardInterrupt), interrupt_when(Shelf.take):
        runner.wait(2)
    assert [result.task_id for result in runner.wait(3, with_timing=True)] == [9, 8, 7]


# -- where and when ---------------------------------------------------------------------------------


def test_waiting_on_the_loop_thread_raises_instead_of_waiting_for_itself(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(give, task_id=1)

    async def wait(name: str, *args: Any) -> None:
        getattr(runner, name)(*args)

    for name, argument in (("wait", 1), ("wait_for_task", 1), ("as_completed", 1.0)):
        with pytest.raises(RuntimeError) as raised:
            runner.run(wait, name, argument)
        assert type(raised.value) is RuntimeError
        assert str(raised.value) == (
            f"{name}() on the runner's own loop thread would wait for itself for ever; "
            "call it from another thread, or await arun()"
        )
    assert runner.wait(1, timeout=10) == [None]


@pytest.mark.any_loop
def test_a_task_of_another_runner_may_wait(make_runner: MakeRunner) -> None:
    one, other = make_runner(), make_runner()
    other.submit(give, "other's")

    async def wait() -> list[Any]:
        return other.wait(1, timeout=10)

    assert one.run(wait) == ["other's"]


@pytest.mark.any_loop
def test_waiting_before_initialize_is_an_error_at_once() -> None:
    runner = AsyncTaskRunner[Any](4)
    for wait in (runner.wait, runner.wait_for_task):
        with pytest.raises(
            RunnerStoppedError, match=r"^the runner was never initialized; call initialize\(\)"
        ):
            wait(1)
    with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized; call initialize\(\)"):
        runner.as_completed()
