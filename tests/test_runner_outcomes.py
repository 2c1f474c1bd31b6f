"""Outcomes: their status, value, error and times, and that the first decision stands."""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from typing import Any

import pytest

from areal_core.async_task_runner import AsyncTaskRunner, TimedResult
from conftest import MakeRunner
from doors import Door, fail, give, turn_loop
from logged import LogLines


def outcome_of(runner: AsyncTaskRunner[Any], task_id: int = 1) -> TimedResult[Any]:
    return runner.wait_for_task(task_id, timeout=10)


async def clean_up_with(door: Door, error: BaseException | None, value: Any = None) -> Any:
    """Wait at *door*; when told to end, raise *error*, or return *value* if there is none."""
    try:
        await door.walk_through()
    except asyncio.CancelledError:
        if error is not None:
            raise error  # noqa: B904  the context is what the tests look at
    return value


def test_a_completed_task_has_a_value_and_no_error(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(give, "value", task_id=1)
    result = outcome_of(runner)
    assert (result.data, result.status, result.error) == ("value", "completed", None)
    runner.submit(give, None, task_id=1)
    result = outcome_of(runner)
    assert (result.data, result.status, result.error) == (None, "completed", None)


def test_a_failed_task_keeps_its_exception_with_the_tasks_own_traceback(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def inner() -> None:
        raise ValueError("why")

    async def outer() -> None:
        await asyncio.sleep(0)
        await inner()

    runner.submit(outer, task_id=1)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "failed")
    assert repr(result.error) == "ValueError('why')"
    assert result.error is not None
    assert [frame.name for frame in traceback.extract_tb(result.error.__traceback__)] == ["outer", "inner"]
    assert 0 < result.create_time < result.finish_time


@pytest.mark.any_loop
def test_the_very_exception_is_handed_on(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner = make_runner()
    for error in (ValueError("v"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("b")):
        runner.submit(fail, error, task_id=1)
        result = outcome_of(runner)
        assert (result.status, result.data) == ("failed", None)
        assert result.error is error
    turn_loop(runner)
    assert [line.message.split()[0] for line in log_lines] == ["task_failed"] * 5


def test_a_task_that_raises_cancelled_error_itself_is_cancelled_with_that_error(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner = make_runner()
    error = asyncio.CancelledError("mine")
    runner.submit(fail, error, task_id=1)
    result = outcome_of(runner)
    assert (result.status, result.data) == ("cancelled", None)
    assert result.error is error
    assert runner.cancel(1) is False
    turn_loop(runner)
    assert [line.level for line in log_lines] == ["warning"]


def test_a_task_cancelled_from_inside_the_loop_is_cancelled(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    tasks = list[asyncio.Task[Any]]()

    async def victim() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await door.walk_through()

    async def cancel() -> None:
        tasks[0].cancel("by another")

    runner.submit(victim, task_id=1)
    door.wait_for()
    runner.run(cancel)
    result = outcome_of(runner)
    assert result.status == "cancelled"
    assert type(result.error) is asyncio.CancelledError
    assert result.error.args == ("by another",)


# -- decided from outside ---------------------------------------------------------------------------


def test_a_cancelled_task_has_its_own_cancelled_error(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "value", task_id=1)
    door.wait_for()
    assert runner.cancel(1)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "cancelled")
    assert type(result.error) is asyncio.CancelledError
    frames = traceback.extract_tb(result.error.__traceback__)
    assert [frame.name for frame in frames] == ["walk_through"]


def test_a_cancelled_task_that_returns_all_the_same_is_cancelled(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(clean_up_with, door, None, "value", task_id=1)
    door.wait_for()
    runner.cancel(1)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "cancelled")
    assert repr(result.error) == "CancelledError('task 1 was cancelled')"
    assert result.error is not None
    assert result.error.__context__ is None


def test_what_a_cancelled_task_raises_instead_is_the_context_of_its_error(make_runner: MakeRunner) -> None:
    runner, door, error = make_runner(), Door(), ValueError("while cleaning up")
    runner.submit(clean_up_with, door, error, task_id=1)
    door.wait_for()
    runner.cancel(1)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "cancelled")
    assert repr(result.error) == "CancelledError('task 1 was cancelled')"
    assert result.error is not None
    assert result.error.__context__ is error


@pytest.mark.parametrize("timeout", [0.01, 1 / 64])
def test_a_task_past_its_deadline_has_a_timeout_error_naming_id_and_seconds(
    make_runner: MakeRunner, timeout: float
) -> None:
    runner, door = make_runner(), Door()
    runner.with_options(task_timeout=timeout, task_id=1).submit(door.walk_through)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "timed_out")
    assert type(result.error) is TimeoutError
    assert str(result.error) == f"task 1 exceeded its deadline of {timeout} s"
    assert type(result.error.__context__) is asyncio.CancelledError
    assert result.finish_time - result.create_time > timeout * 1e9 - 3e6  # a uvloop counts in milliseconds
    assert result.seconds == (result.finish_time - result.create_time) / 1e9


def test_what_a_task_raises_after_its_deadline_is_the_context_of_its_error(make_runner: MakeRunner) -> None:
    runner, door, error = make_runner(), Door(), ValueError("while cleaning up")
    runner.with_options(task_timeout=0.01, task_id=1).submit(clean_up_with, door, error)
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "timed_out")
    assert type(result.error) is TimeoutError
    assert result.error.__context__ is error


def test_what_a_task_returns_after_its_deadline_does_not_count(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.with_options(task_timeout=0.01, task_id=1).submit(clean_up_with, door, None, "value")
    result = outcome_of(runner)
    assert (result.data, result.status) == (None, "timed_out")
    assert type(result.error) is TimeoutError
    assert result.error.__context__ is None


def test_a_deadline_passed_is_not_turned_into_a_cancellation(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    told, asked = Door(), []

    async def linger() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            asked.append(runner.cancel(1))  # on the loop thread, while it cleans up
            await told.walk_through()

    runner.with_options(task_timeout=0.01, task_id=1).submit(linger)
    told.wait_for()
    assert runner.cancel(1) is False
    assert asked == [False]
    told.open()
    assert outcome_of(runner).status == "timed_out"


def test_a_cancellation_is_not_turned_into_a_timeout_by_the_deadline(make_runner: MakeRunner) -> None:
    runner, cleaning = make_runner(), Door()

    async def linger() -> str:
        try:
            await Door().walk_through()
        except asyncio.CancelledError:
            await cleaning.walk_through()
        return "value"

    runner.with_options(task_timeout=0.05, task_id=1).submit(linger)
    turn_loop(runner)
    assert runner.cancel(1)
    cleaning.wait_for()
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.1)  # past the deadline, within the grace
    assert runner.cancel(1) is True
    cleaning.open()
    result = outcome_of(runner)
    assert result.status == "cancelled"
    assert repr(result.error) == "CancelledError('task 1 was cancelled')"


def test_a_finished_task_keeps_its_outcome_past_its_deadline(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner = make_runner(task_timeout=0.02)
    runner.submit(give, "value", task_id=1)
    runner.submit(fail, ValueError("why"), task_id=2)
    turn_loop(runner)
    with pytest.raises(TimeoutError):
        runner.wait(3, timeout=0.05)
    assert (outcome_of(runner).status, outcome_of(runner, 2).status) == ("completed", "failed")
    assert [line.message.split()[0] for line in log_lines] == ["task_failed"]


def test_a_task_that_never_started_was_created_when_it_finished(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, task_id=1)
    runner.submit(give, task_id=2)
    runner.cancel(1)
    runner.destroy()
    for task_id in (1, 2):
        result = outcome_of(runner, task_id)
        assert (result.data, result.status) == (None, "cancelled")
        assert repr(result.error) == f"CancelledError('task {task_id} was cancelled')"
        assert result.create_time == result.finish_time > 0


def test_a_task_cancelled_before_its_first_step_never_runs(make_runner: MakeRunner) -> None:
    """The first task of a burst cancels the second: it has been taken from pending and has not begun."""
    runner, ran = make_runner(), []

    async def cancel_next() -> bool:
        return runner.cancel(2)

    async def run() -> None:
        ran.append(True)

    runner.pause()
    runner.submit(cancel_next, task_id=1)
    runner.submit(run, task_id=2)
    runner.submit(give, "third", task_id=3)
    runner.resume()
    assert outcome_of(runner, 1).data is True
    result = outcome_of(runner, 2)
    assert (result.data, result.status) == (None, "cancelled")
    assert type(result.error) is asyncio.CancelledError
    assert result.create_time == result.finish_time > 0
    assert ran == []
    assert outcome_of(runner, 3).data == "third"


def test_a_task_that_another_cancels_on_the_loop_before_its_first_step_is_cancelled(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()

    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    runner.pause()
    runner.submit(cancel_all, task_id=1)
    for task_id in (2, 3):
        runner.submit(asyncio.sleep, 0.001, task_id, task_id=task_id)
    runner.resume()
    assert outcome_of(runner, 1).status == "completed"
    for task_id in (2, 3):
        result = outcome_of(runner, task_id)
        if result.status == "cancelled":  # where tasks start eagerly, these were not there yet
            assert repr(result.error) == f"CancelledError('task {task_id} was cancelled before it started')"
            assert result.create_time == result.finish_time > 0
        else:
            assert (result.status, result.data) == ("completed", task_id)
    runner.submit(give, "unharmed")
    assert runner.wait(1, timeout=10) == ["unharmed"]


# -- the result object ------------------------------------------------------------------------------


@pytest.mark.any_loop
def test_a_timed_result_is_frozen_and_equal_to_itself_alone(make_runner: MakeRunner) -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("a tensor, perhaps")

        __hash__ = None  # type: ignore[assignment]

    runner = make_runner()
    runner.submit(give, Incomparable())
    runner.submit(give, Incomparable())
    one, other = runner.wait(2, timeout=10, with_timing=True)
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.data = None  # type: ignore[misc]
    assert not hasattr(one, "__dict__")  # there may be hundreds of thousands
    fields = [field.name for field in dataclasses.fields(TimedResult)]
    assert fields == ["task_id", "data", "create_time", "finish_time", "status", "error"]


@pytest.mark.any_loop
def test_an_outcome_keeps_neither_the_arguments_nor_the_coroutine_alive(make_runner: MakeRunner) -> None:
    import gc
    import weakref

    class Prompt:
        pass

    async def take(prompt: Prompt, *, again: Prompt) -> str:
        await asyncio.sleep(0)
        return "value"

    runner, prompt = make_runner(), Prompt()
    trace = weakref.ref(prompt)
    runner.submit(take, prompt, again=prompt)
    turn_loop(runner)
    assert runner.stats().finished == 1
    del prompt
    gc.collect()
    assert trace() is None
