"""What a task may do wrong without harm to the runner, to other tasks, or to later submits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from areal_core.async_task_runner import AsyncTaskRunner
from conftest import MakeRunner
from doors import (
    Caller,
    Door,
    fail,
    give,
    outcome_of,
    turn_loop,
    with_tasks_around,
)
from logged import LogLines


@pytest.fixture
def healthy(make_runner: MakeRunner) -> Iterator[AsyncTaskRunner[Any]]:
    yield from with_tasks_around(make_runner)


# -- calls that cannot work -------------------------------------------------------------------------


def sync_function(value: int) -> int:
    return value


@pytest.mark.parametrize(
    ("fn", "args", "error"),
    [
        (give, (1, 2, 3), "TypeError: give() takes from 0 to 1 positional arguments but 3 were given"),
        (fail, (), "TypeError: fail() missing 1 required positional argument: 'error'"),
        (sync_function, (1,), "TypeError: object int can't be used in 'await' expression"),
        (print, (), "TypeError: object NoneType can't be used in 'await' expression"),
        (concurrent.futures.Future, (), "TypeError: object Future can't be used in 'await' expression"),
        (int, ("x",), "ValueError: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_call_that_cannot_work_fails_alone(
    healthy: AsyncTaskRunner[Any], fn: Callable[..., Any], args: tuple[Any, ...], error: str
) -> None:
    result = outcome_of(healthy, fn, *args)
    assert (result.status, result.data) == ("failed", None)
    assert f"{type(result.error).__name__}: {result.error}" == error


def test_a_function_that_gives_a_future_of_the_loop_is_awaited(healthy: AsyncTaskRunner[Any]) -> None:
    def future_of(value: str) -> asyncio.Future[str]:
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, value)
        return future

    result = outcome_of(healthy, future_of, "value")
    assert (result.status, result.data) == ("completed", "value")


def test_a_future_of_another_loop_fails_alone(healthy: AsyncTaskRunner[Any]) -> None:
    other = asyncio.new_event_loop()
    future = other.create_future()
    result = outcome_of(healthy, lambda: future)
    assert result.status == "failed"
    assert type(result.error) is RuntimeError
    other.close()


@pytest.mark.any_loop
def test_an_awaitable_that_breaks_the_rules_fails_alone(healthy: AsyncTaskRunner[Any]) -> None:
    class NoIterator:
        def __await__(self) -> Any:
            return 5

    class YieldsNonsense:
        def __await__(self) -> Generator[Any, Any, None]:
            yield "nonsense"

    class Raises:
        def __await__(self) -> Any:
            raise LookupError

    for awaitable, error in ((NoIterator, TypeError), (YieldsNonsense, RuntimeError), (Raises, LookupError)):
        result = outcome_of(healthy, awaitable)
        assert (result.status, type(result.error)) == ("failed", error)


# -- exceptions that end other programs -------------------------------------------------------------


async def at_once(error: BaseException) -> None:
    raise error


async def after_a_turn(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def in_a_child(error: BaseException) -> None:
    await asyncio.create_task(after_a_turn(error))


async def in_a_group(error: BaseException) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(after_a_turn(error))
        group.create_task(asyncio.sleep(60))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("where", [at_once, after_a_turn, in_a_child, in_a_group])
def test_an_exception_that_ends_programs_ends_only_its_task(
    healthy: AsyncTaskRunner[Any],
    log_lines: LogLines,
    where: Callable[..., Awaitable[None]],
    error: BaseException,
) -> None:
    for _ in range(3):
        result = outcome_of(healthy, where, error)
        assert result.status == "failed"
        assert result.error is error
    turn_loop(healthy)
    events = [line.message.split()[0] for line in log_lines]
    assert events.count("task_failed") == 3
    contained = [line.message for line in log_lines if line.message.startswith("task_tried_to_stop")]
    if where in (at_once, after_a_turn):
        assert contained == []
    else:
        assert contained == [f"task_tried_to_stop_the_loop what={error!r}"] * 3
        assert {line.level for line in log_lines if line.message in contained} == {"warning"}


def test_an_exception_that_ends_programs_in_a_callback_is_contained(
    healthy: AsyncTaskRunner[Any], log_lines: LogLines
) -> None:
    def leave() -> None:
        sys.exit(4)

    async def schedule() -> str:
        asyncio.get_running_loop().call_soon(leave)
        await asyncio.sleep(0)
        return "goes on"

    assert outcome_of(healthy, schedule).data == "goes on"
    turn_loop(healthy)
    assert [line[:2] for line in log_lines] == [("warning", "task_tried_to_stop_the_loop what=SystemExit(4)")]


def test_stopping_the_loop_is_contained(healthy: AsyncTaskRunner[Any], log_lines: LogLines) -> None:
    async def stop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "goes on"

    for _ in range(5):
        assert outcome_of(healthy, stop).data == "goes on"
    turn_loop(healthy)
    assert [line[:2] for line in log_lines] == [
        ("warning", "task_tried_to_stop_the_loop what=loop.stop()")
    ] * 5


def test_closing_the_loop_fails_alone(healthy: AsyncTaskRunner[Any]) -> None:
    async def close() -> None:
        asyncio.get_running_loop().close()

    result = outcome_of(healthy, close)
    assert (result.status, type(result.error)) == ("failed", RuntimeError)


def test_running_another_loop_in_the_loop_fails_alone(healthy: AsyncTaskRunner[Any]) -> None:
    async def nest() -> None:
        coroutine = give()
        try:
            asyncio.run(coroutine)
        finally:
            coroutine.close()

    result = outcome_of(healthy, nest)
    assert (result.status, type(result.error)) == ("failed", RuntimeError)


# -- what tasks do to each other --------------------------------------------------------------------


def test_a_task_that_cancels_all_others_ends_those_as_cancelled(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(), Door()

    async def cancel_all() -> str:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return "did it"

    async def submit_and_cancel() -> str:
        runner.submit(give, "pending", task_id=4)
        return await cancel_all()

    for task_id in (1, 2):
        runner.submit(door.walk_through, task_id=task_id)
    door.wait_for(2)
    runner.submit(submit_and_cancel, task_id=3)
    results = {result.task_id: result for result in runner.as_completed(timeout=10)}
    assert {task_id: (result.status, result.data) for task_id, result in results.items()} == {
        1: ("cancelled", None),
        2: ("cancelled", None),
        3: ("completed", "did it"),
        4: ("completed", "pending"),
    }
    assert type(results[1].error) is asyncio.CancelledError
    turn_loop(runner)
    assert [line.message.split()[0] for line in log_lines] == ["task_cancelled"] * 2
    runner.submit(give, "later")
    assert runner.wait(1, timeout=10) == ["later"]


def test_a_task_that_cancels_itself_too_is_cancelled(healthy: AsyncTaskRunner[Any]) -> None:
    async def cancel_self() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("myself")
        await asyncio.sleep(0)

    result = outcome_of(healthy, cancel_self)
    assert result.status == "cancelled"
    assert result.error is not None
    assert result.error.args == ("myself",)


def test_a_call_ended_by_a_task_that_cancels_all_raises_in_its_caller(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()

    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    caller = Caller(runner.run, door.walk_through)
    door.wait_for()
    runner.run(cancel_all)
    assert type(caller.error()) is asyncio.CancelledError
    assert runner.run(give, 1) == 1


# -- what tasks may set on the loop -----------------------------------------------------------------


def test_a_task_factory_of_the_users_is_used(healthy: AsyncTaskRunner[Any]) -> None:
    class MyTask(asyncio.Task[Any]):
        pass

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> MyTask:
        return MyTask(coroutine, loop=loop, **options)

    async def use_it() -> None:
        asyncio.get_running_loop().set_task_factory(factory)

    async def what_am_i() -> type:
        return type(asyncio.current_task())

    healthy.run(use_it)
    assert outcome_of(healthy, what_am_i).data is MyTask
    assert healthy.run(what_am_i) is MyTask


def test_a_task_factory_that_puts_off_first_steps_has_each_taken_once(healthy: AsyncTaskRunner[Any]) -> None:
    ran: list[int] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def put_off() -> Any:
            await asyncio.sleep(0)
            return await coroutine

        return asyncio.Task(put_off(), loop=loop, **options)

    async def use(factory: Any) -> None:
        asyncio.get_running_loop().set_task_factory(factory)

    async def note(number: int) -> int:
        ran.append(number)
        return number

    healthy.run(use, factory)
    assert outcome_of(healthy, note, 1).data == 1
    healthy.run(use, None)
    assert ran == [1]


def test_a_task_factory_that_raises_fails_only_what_it_is_asked_to_start(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, error = make_runner(), Door(), LookupError("no task")

    def factory(*_: Any, **__: Any) -> Any:
        raise error

    async def use(factory: Any) -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        await door.walk_through()
        asyncio.get_running_loop().set_task_factory(None)

    runner.submit(use, factory, task_id=2)
    door.wait_for()
    result = outcome_of(runner, give)
    assert (result.status, result.error) == ("failed", error)
    assert result.create_time == result.finish_time
    with pytest.raises(LookupError, match="no task"):
        runner.run(give)
    door.open()
    assert runner.wait(1, timeout=10) == [None]
    assert outcome_of(runner, give, "value").data == "value"
    turn_loop(runner)
    assert [line.message.split()[0] for line in log_lines] == ["task_failed"]


def test_an_exception_handler_that_raises_harms_nobody(
    healthy: AsyncTaskRunner[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def handler(*_: Any) -> None:
        raise LookupError("in the handler")

    def fail_in_callback() -> None:
        raise ValueError("in the callback")

    async def use_it() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(handler)
        loop.call_soon(fail_in_callback)

    healthy.run(use_it)
    turn_loop(healthy)
    assert "Unhandled error in exception handler" in caplog.text
