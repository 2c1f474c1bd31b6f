"""What a task may do wrong without harm to the runner, to other tasks, or to later submits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Self

import pytest

from areal_core.async_task_runner import AsyncTaskRunner, TimedResult
from areal_core.errors import RunnerDiedError
from conftest import MakeRunner
from doors import Caller, Door, break_down, fail, give, turn_loop, use_task_class
from logged import LogLines


@pytest.fixture
def healthy(make_runner: MakeRunner) -> Iterator[AsyncTaskRunner[Any]]:
    """Make a runner with one task running and one pending, and see that both and a third are unharmed."""
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "running", task_id=100)
    door.wait_for()
    thread = runner.thread
    yield runner
    door.open()
    runner.submit(give, "later", task_id=101)
    assert runner.wait_for_task(100, timeout=10).data == "running"
    assert runner.wait_for_task(101, timeout=10).data == "later"
    assert not runner.exiting.is_set()
    assert runner.thread is thread
    assert runner.stats().state == "running"


def outcome_of(
    runner: AsyncTaskRunner[Any], fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> TimedResult[Any]:
    return runner.wait_for_task(runner.submit(fn, *args, task_id=1, **kwargs), timeout=10)


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
        await asyncio.sleep(0.001)
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


# -- objects that misbehave -------------------------------------------------------------------------


class Incomparable:
    """A value that can be neither compared, nor hashed, nor printed, nor asked whether it is true."""

    def _refuse(self, *_: object) -> Any:
        raise RuntimeError("refused")

    __eq__ = __bool__ = __repr__ = __str__ = __len__ = _refuse
    __hash__ = _refuse


@pytest.mark.any_loop
def test_a_value_that_can_only_be_held_is_delivered(healthy: AsyncTaskRunner[Any]) -> None:
    value = Incomparable()
    assert outcome_of(healthy, give, value).data is value
    healthy.submit(give, value)
    assert healthy.wait(1, timeout=10)[0] is value
    healthy.submit(give, value)
    assert next(iter(healthy.as_completed(timeout=10))).data is value
    assert healthy.run(give, value) is value


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.any_loop
def test_an_error_that_cannot_be_printed_is_delivered_and_logged_by_its_type(
    healthy: AsyncTaskRunner[Any], log_lines: LogLines
) -> None:
    error = UnprintableError()
    result = outcome_of(healthy, fail, error)
    assert result.error is error
    turn_loop(healthy)
    assert [line.message.partition(" error=")[2] for line in log_lines] == [
        "UnprintableError (its str raises)"
    ]


class LyingError(Exception):
    """Has no class to show."""

    @property  # type: ignore[misc]  # that is what is wrong with it
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class ExitingError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.any_loop
@pytest.mark.parametrize("error_class", [LyingError, ExitingError])
def test_an_error_that_raises_when_it_is_looked_at_fails_its_task_alone(
    healthy: AsyncTaskRunner[Any], error_class: type[Exception]
) -> None:
    error = error_class()
    result = outcome_of(healthy, fail, error)
    assert result.status == "failed"
    assert result.error is error
    healthy.submit(fail, error)
    assert healthy.wait(1, timeout=10) == [None]


@pytest.mark.any_loop
def test_a_task_whose_cancel_raises_is_abandoned_and_keeps_no_other_from_ending(
    make_runner: MakeRunner,
) -> None:
    class RefusingTask(asyncio.Task[Any]):
        def cancel(self, msg: object = None) -> bool:
            raise RuntimeError("no")

    runner, door = make_runner(cancel_grace=0.02), Door()
    runner.run(use_task_class, RefusingTask)
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.run(use_task_class, None)
    runner.submit(door.walk_through, task_id=2)
    door.wait_for()
    assert runner.cancel(1)
    assert runner.wait_for_task(1, timeout=10).status == "cancelled"
    assert runner.stats().abandoned == 1
    runner.destroy()
    assert runner.wait_for_task(2).status == "cancelled"
    assert runner.stats().abandoned == 1


@pytest.mark.any_loop
def test_an_error_that_refuses_to_be_touched_is_delivered(healthy: AsyncTaskRunner[Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    class StubbornError(Exception):
        def with_traceback(self, traceback: TracebackType | None) -> Self:
            raise RuntimeError("no")

    for error in (FrozenError(5), StubbornError()):
        result = outcome_of(healthy, fail, error)
        assert (result.status, result.error) == ("failed", error)
        with pytest.raises(type(error)) as raised:
            healthy.run(fail, error)
        assert raised.value is error


@pytest.mark.any_loop
def test_an_error_that_is_returned_is_a_value(healthy: AsyncTaskRunner[Any]) -> None:
    for error in (ValueError("v"), asyncio.CancelledError(), SystemExit(3)):
        result = outcome_of(healthy, give, error)
        assert (result.status, result.data, result.error) == ("completed", error, None)
        assert healthy.run(give, error) is error


@pytest.mark.any_loop
def test_a_long_error_is_cut_in_the_log_and_whole_in_the_outcome(
    healthy: AsyncTaskRunner[Any], log_lines: LogLines
) -> None:
    error = ValueError("x" * 600)
    assert outcome_of(healthy, fail, error).error is error
    turn_loop(healthy)
    assert [line.message.partition(" error=")[2] for line in log_lines] == [f"ValueError: {error}"[:500]]


@pytest.mark.any_loop
def test_a_function_without_a_decent_name_fails_and_completes_like_any(
    healthy: AsyncTaskRunner[Any], log_lines: LogLines
) -> None:
    class Nameless:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"no {name}")

        def __call__(self, error: BaseException) -> Awaitable[None]:
            return fail(error)

    class OddlyNamed(Nameless):
        def __getattr__(self, name: str) -> Any:
            return 5

    for fn in (Nameless(), OddlyNamed()):
        error = ValueError("why")
        assert outcome_of(healthy, fn, error).error is error
        turn_loop(healthy)
    here = "test_a_function_without_a_decent_name_fails_and_completes_like_any.<locals>"
    assert [line.message.partition(" seconds=")[0] for line in log_lines] == [
        f"task_failed task=1 {here}.Nameless",
        f"task_failed task=1 {here}.OddlyNamed",
    ]


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


# -- logging that fails -----------------------------------------------------------------------------


class UsingHandler(logging.Handler):
    """A log handler that itself uses the runner."""

    def __init__(self, runner: AsyncTaskRunner[Any]) -> None:
        super().__init__()
        self._runner = runner

    def emit(self, record: logging.LogRecord) -> None:
        self._runner.submit(give, f"{self._runner!r}"[:24], task_id=50)


@pytest.mark.any_loop
def test_a_log_handler_may_use_the_runner(healthy: AsyncTaskRunner[Any]) -> None:
    logger, handler = logging.getLogger("areal_core"), UsingHandler(healthy)
    logger.addHandler(handler)
    try:
        assert outcome_of(healthy, fail, ValueError("why")).status == "failed"
        turn_loop(healthy)
    finally:
        logger.removeHandler(handler)
    assert healthy.wait_for_task(50, timeout=10).data == "<AsyncTaskRunner running"


class FailingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("disk full")


@pytest.mark.any_loop
def test_a_logger_that_exits_costs_the_line_and_a_death_is_a_death_all_the_same(
    make_runner: MakeRunner,
) -> None:
    class ExitingLogger:
        def warning(self, event: str, **fields: Any) -> None:
            raise SystemExit(3)

        debug = info = error = warning

    runner = make_runner(logger=ExitingLogger())
    runner.submit(fail, ValueError("why"))
    assert runner.wait(1, timeout=10) == [None]
    turn_loop(runner)
    break_down(runner, OSError("broken"))
    with pytest.raises(RunnerDiedError):
        runner.wait(1, timeout=10)


@pytest.mark.any_loop
def test_a_log_handler_that_raises_costs_the_line_and_not_the_runner(
    healthy: AsyncTaskRunner[Any], caplog: pytest.LogCaptureFixture
) -> None:
    logger, handler = logging.getLogger("areal_core"), FailingHandler()
    logger.addHandler(handler)
    try:
        assert outcome_of(healthy, fail, ValueError("why")).status == "failed"
        healthy.pause()
        healthy.submit(give, task_id=2)
        assert healthy.cancel(2)
        healthy.resume()
        turn_loop(healthy)
    finally:
        logger.removeHandler(handler)
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert healthy.wait(1, timeout=10) == [None]


@pytest.mark.any_loop
def test_a_task_may_block_the_loop_for_a_while(healthy: AsyncTaskRunner[Any]) -> None:
    import time

    async def compute() -> str:
        time.sleep(0.05)
        return "done"

    assert outcome_of(healthy, compute).data == "done"
