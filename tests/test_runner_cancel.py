"""cancel, the grace that follows it and a deadline, and tasks that outlive their outcome."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from types import FrameType
from typing import Any

import pytest

from areal_core._runner.launcher import Launcher
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerStoppedError
from conftest import MakeRunner
from doors import Blockade, Caller, Door, fail, give, in_thread, turn_loop
from logged import LogLines


def statuses(runner: AsyncTaskRunner[Any], count: int) -> dict[int, str]:
    results = runner.wait(count, timeout=10, with_timing=True)
    return {result.task_id: result.status for result in results}


# -- what cancel answers ----------------------------------------------------------------------------


def test_a_pending_task_is_cancelled_at_once_while_paused_and_never_runs(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, ran = make_runner(), list[int]()

    async def run(number: int) -> int:
        ran.append(number)
        return number

    runner.pause()
    for number in range(3):
        runner.submit(run, number, task_id=number)
    assert runner.cancel(1) is True
    assert runner.stats() == RunnerStats(submitted=3, pending=2, finished=1, state="paused")
    assert runner.cancel(1) is True
    result = runner.wait(1, timeout=0, with_timing=True)[0]
    assert (result.task_id, result.status, result.data) == (1, "cancelled", None)
    assert result.create_time == result.finish_time > 0
    assert runner.cancel(1) is False
    runner.resume()
    assert runner.wait(2, timeout=10) == [0, 2]
    assert ran == [0, 2]
    name = run.__qualname__
    turn_loop(runner)
    assert [line[:2] for line in log_lines] == [
        ("warning", f"task_cancelled task=1 {name} seconds=0.0 error=CancelledError: task 1 was cancelled")
    ]


def test_a_task_that_waits_for_its_start_is_cancelled_at_once(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block, task_id=1)
    blockade.wait_until_entered()
    runner.submit(give, task_id=2)
    assert runner.cancel(2) is True
    assert runner.wait_for_task(2, timeout=0).status == "cancelled"
    blockade.lift()
    assert statuses(runner, 1) == {1: "completed"}
    assert runner.stats() == RunnerStats(submitted=2, collected=2, state="running")


def test_a_running_task_is_cancelled_and_says_so_again_on_the_second_call(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, blockade = make_runner(), Door(), Blockade()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.submit(blockade.block, task_id=2)
    blockade.wait_until_entered()
    assert runner.cancel(1) is True
    assert runner.cancel(1) is True
    assert runner.stats() == RunnerStats(submitted=2, running=2, state="running")
    blockade.lift()
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=2, finished=2, state="running")
    assert runner.cancel(1) is True  # it is finished, and cancelled
    assert statuses(runner, 2) == {1: "cancelled", 2: "completed"}
    assert runner.cancel(1) is False
    assert [line.message.split()[0] for line in log_lines] == ["task_cancelled"]


@pytest.mark.any_loop
def test_cancel_of_what_is_unknown_or_finished_is_refused(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(give, task_id=1)
    runner.submit(fail, ValueError("why"), task_id=2)
    runner.submit(fail, asyncio.CancelledError(), task_id=3)
    turn_loop(runner)
    for task_id in (0, 1, 2, 3, 2**48):
        assert runner.cancel(task_id) is False
    assert statuses(runner, 3) == {1: "completed", 2: "failed", 3: "cancelled"}
    for task_id in (1, 2, 3):
        assert runner.cancel(task_id) is False


def test_a_task_that_has_returned_is_finished_for_cancel_although_it_is_not_published_yet(
    make_runner: MakeRunner,
) -> None:
    """Outcomes are published once in a turn of the loop."""
    runner = make_runner()
    answers = []

    async def cancel_the_one_before() -> None:
        answers.append(runner.cancel(1))

    runner.pause()
    runner.submit(give, "value", task_id=1)
    runner.submit(cancel_the_one_before, task_id=2)
    runner.resume()
    result = runner.wait_for_task(1, timeout=10)
    assert answers == [False]
    assert (result.status, result.data) == ("completed", "value")


@pytest.mark.any_loop
def test_cancel_needs_a_running_runner(make_runner: MakeRunner) -> None:
    runner = AsyncTaskRunner[Any](1)
    with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
        runner.cancel(1)
    runner = make_runner()
    runner.destroy()
    with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
        runner.cancel(1)


def test_a_task_may_cancel_itself_and_others(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()

    async def cancel_both() -> None:
        assert runner.cancel(1)
        assert runner.cancel(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await Door().walk_through()

    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.submit(cancel_both, task_id=2)
    assert statuses(runner, 2) == {1: "cancelled", 2: "cancelled"}


def test_a_task_that_cancels_itself_and_returns_at_once_is_cancelled_once(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def cancel_itself() -> str:
        assert runner.cancel(1)
        return "value"

    runner.submit(cancel_itself, task_id=1)
    result = runner.wait_for_task(1, timeout=10)
    assert (result.status, repr(result.error)) == ("cancelled", "CancelledError('task 1 was cancelled')")
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="running")


def test_a_task_may_cancel_those_of_its_burst_that_have_not_started(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def cancel_two() -> None:
        assert runner.cancel(2)
        assert runner.cancel(4)

    runner.pause()
    runner.submit(cancel_two, task_id=1)
    for task_id in range(2, 6):
        runner.submit(give, task_id, task_id=task_id)
    runner.resume()
    results = {result.task_id: result for result in runner.as_completed(timeout=10)}
    cancelled = [results.pop(task_id) for task_id in (2, 4)]
    assert [repr(result.error) for result in cancelled] == [
        f"CancelledError('task {task_id} was cancelled before it started')" for task_id in (2, 4)
    ]
    assert {task_id: result.data for task_id, result in results.items()} == {1: None, 3: 3, 5: 5}


def test_a_task_cancelled_in_the_moment_it_starts_is_cancelled_and_has_not_started(
    make_runner: MakeRunner,
) -> None:
    """It was found uncancelled when its burst was gone through."""
    runner, ran = make_runner(), list[int]()

    def cancel(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is Launcher._play.__code__:
            sys.setprofile(None)
            assert runner.cancel(2)

    async def note(task_id: int) -> None:
        ran.append(task_id)
        if task_id == 1:
            sys.setprofile(cancel)

    runner.pause()
    for task_id in (1, 2, 3):
        runner.submit(note, task_id, task_id=task_id)
    runner.resume()
    result = runner.wait_for_task(2, timeout=10)
    assert repr(result.error) == "CancelledError('task 2 was cancelled before it started')"
    assert statuses(runner, 2) == {1: "completed", 3: "completed"}
    assert ran == [1, 3]


def test_many_threads_cancel_the_same_tasks_and_agree(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for number in range(40):
        runner.submit(door.walk_through, task_id=number)
    door.wait_for(40)

    def cancel_all() -> list[bool]:
        return [runner.cancel(number) for number in range(40)]

    callers = [Caller(cancel_all) for _ in range(4)]
    assert [caller.result() for caller in callers] == [[True] * 40] * 4
    assert statuses(runner, 40) == dict.fromkeys(range(40), "cancelled")


def test_an_id_used_again_is_not_hit_by_the_cancellation_of_its_predecessor(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    for value in ("first", "second"):
        runner.submit(blockade.block, value, task_id=1)
        blockade.wait_until_entered()
        if value == "first":
            assert runner.cancel(1)
        blockade.lift()
        result = runner.wait_for_task(1, timeout=10)
        assert (result.status, result.data) == (
            ("cancelled", None) if value == "first" else ("completed", "second")
        )


# -- grace ------------------------------------------------------------------------------------------


def test_a_cancelled_task_runs_until_it_has_cleaned_up_and_then_its_outcome_is_published(
    make_runner: MakeRunner,
) -> None:
    runner, door, cleaning = make_runner(), Door(), Door()
    cleaned = []

    async def work() -> None:
        try:
            await door.walk_through()
        finally:
            await cleaning.walk_through()
            cleaned.append(True)

    runner.submit(work, task_id=1)
    door.wait_for()
    assert runner.cancel(1)
    cleaning.wait_for()
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=1, running=1, state="running")
    cleaning.open()
    result = runner.wait_for_task(1, timeout=10)
    assert cleaned == [True]
    assert result.status == "cancelled"
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="running")


@pytest.mark.parametrize("told_by", ["cancel", "deadline"])
def test_when_the_grace_ends_the_outcome_is_published_and_the_task_counts_as_abandoned(
    make_runner: MakeRunner, log_lines: LogLines, told_by: str
) -> None:
    runner, door = make_runner(cancel_grace=0.05), Door()
    if told_by == "cancel":
        runner.submit(door.insist, "too late", task_id=1)
        door.wait_for()
        assert runner.cancel(1)
    else:
        runner.with_options(task_timeout=0.01, task_id=1).submit(door.insist, "too late")
    result = runner.wait_for_task(1, timeout=10)
    assert result.status == ("cancelled" if told_by == "cancel" else "timed_out")
    assert result.data is None
    assert result.error is not None
    assert result.error.__context__ is None
    assert result.finish_time - result.create_time > 0.045e9  # a uvloop counts in milliseconds
    assert runner.stats() == RunnerStats(submitted=1, collected=1, abandoned=1, state="running")
    runner.submit(give, "another task with this id", task_id=1)
    assert runner.wait(1, timeout=10) == ["another task with this id"]
    door.open()
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=2, collected=2, abandoned=0, state="running")
    assert (result.data, type(result.error)) == (
        None,
        asyncio.CancelledError if told_by == "cancel" else TimeoutError,
    )
    turn_loop(runner)
    assert len(log_lines) == 1


def test_an_abandoned_tasks_late_failure_changes_nothing_and_is_not_logged(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0.01), Door()

    async def refuse_and_fail() -> None:
        await door.insist()
        raise ValueError("too late")

    runner.submit(refuse_and_fail, task_id=1)
    door.wait_for()
    runner.cancel(1)
    result = runner.wait_for_task(1, timeout=10)
    door.open()
    turn_loop(runner)
    assert (result.status, repr(result.error)) == ("cancelled", "CancelledError('task 1 was cancelled')")
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="running")
    assert [line.message.split()[0] for line in log_lines] == ["task_cancelled"]


def test_abandoned_tasks_are_counted_each(make_runner: MakeRunner) -> None:
    runner, doors = make_runner(cancel_grace=0.01), [Door() for _ in range(3)]
    for number, door in enumerate(doors):
        runner.submit(door.insist, task_id=number)
        door.wait_for()
    for number in range(3):
        runner.cancel(number)
    assert statuses(runner, 3) == dict.fromkeys(range(3), "cancelled")
    counts = []
    for door in doors:
        counts.append(runner.stats().abandoned)
        door.open()
        turn_loop(runner)
    assert [*counts, runner.stats().abandoned] == [3, 2, 1, 0]


def test_with_no_grace_a_task_that_ends_when_told_is_not_abandoned(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.submit(door.insist, task_id=2)
    door.wait_for()
    assert runner.cancel(1)
    assert runner.cancel(2)
    assert statuses(runner, 2) == {1: "cancelled", 2: "cancelled"}
    assert runner.stats().abandoned == 1
    door.open()


def test_the_grace_does_not_touch_a_task_that_ended_within_it(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0.02), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.cancel(1)
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="running")
    with pytest.raises(TimeoutError):
        runner.wait(2, timeout=0.05)  # past the grace
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="running")
    assert len(log_lines) == 1
    assert runner.wait_for_task(1, timeout=0).status == "cancelled"


def test_a_task_that_ends_before_its_cancellation_arrives_is_cancelled_once(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade = make_runner(cancel_grace=0.02), Blockade()

    async def block_next_turn() -> None:
        await asyncio.sleep(0)
        await blockade.block()

    async def end_next_turn() -> str:
        await asyncio.sleep(0)
        return "value"

    runner.pause()
    runner.submit(block_next_turn, task_id=1)
    runner.submit(end_next_turn, task_id=2)
    runner.resume()
    blockade.wait_until_entered()
    assert runner.cancel(2)
    blockade.lift()
    turn_loop(runner)
    with pytest.raises(TimeoutError):
        runner.wait(3, timeout=0.05)  # past the grace
    assert runner.stats() == RunnerStats(submitted=2, finished=2, state="running")
    assert [line.message.split(" seconds")[0] for line in log_lines] == [
        f"task_cancelled task=2 {end_next_turn.__qualname__}"
    ]
    result = runner.wait_for_task(2, timeout=0)
    assert (result.status, result.data) == ("cancelled", None)


def test_a_cancellation_is_delivered_once_not_again_by_the_deadline_nor_by_a_second_cancel(
    make_runner: MakeRunner,
) -> None:
    runner, told = make_runner(), list[str]()
    cleaning, door = Door(), Door()

    async def count_cancellations() -> None:
        for _ in range(2):
            try:
                await (cleaning if told else door).walk_through()
            except asyncio.CancelledError:
                told.append("told")

    runner.with_options(task_timeout=0.03, task_id=1).submit(count_cancellations)
    door.wait_for()
    assert runner.cancel(1)
    cleaning.wait_for()
    assert runner.cancel(1)
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.06)
    assert in_thread(runner.cancel, 1)
    cleaning.open()
    assert statuses(runner, 1) == {1: "cancelled"}
    assert told == ["told"]


def test_the_deadline_of_a_cancelled_task_keeps_nothing_of_it_alive(make_runner: MakeRunner) -> None:
    runner, door = make_runner(task_timeout=3600.0), Door()

    class ObjectionError(Exception):
        pass

    async def object_to_it() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            raise ObjectionError from None

    runner.submit(object_to_it, task_id=1)
    door.wait_for()
    runner.cancel(1)
    (result,) = runner.wait(1, timeout=10, with_timing=True)
    assert result.error is not None
    assert isinstance(result.error.__context__, ObjectionError)
    trace = weakref.ref(result.error.__context__)
    del result
    turn_loop(runner)
    gc.collect()
    assert trace() is None
