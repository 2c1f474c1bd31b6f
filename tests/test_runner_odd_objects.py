"""Values, errors, functions and loggers that misbehave when the runner touches them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

import pytest

from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import RunnerDiedError
from conftest import MakeRunner
from doors import (
    LONG_S,
    Door,
    break_down,
    fail,
    give,
    outcome_of,
    turn_loop,
    use_task_class,
    with_tasks_around,
)
from logged import LogLines


@pytest.fixture
def healthy(make_runner: MakeRunner) -> Iterator[AsyncTaskRunner[Any]]:
    yield from with_tasks_around(make_runner)


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


class ShyTask(asyncio.Task[Any]):
    """A task that does not tell whether it is being cancelled."""

    def cancelling(self) -> int:
        raise RuntimeError("no")


class BareTask(asyncio.Future[Any]):
    """A task of another kind, which knows no more than a future does."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        coroutine.close()
        asyncio.tasks._register_task(self)  # type: ignore[arg-type]


class RefusingBareTask(BareTask):
    def cancel(self, msg: object = None) -> bool:
        return False


@pytest.mark.parametrize("task_class", [ShyTask, BareTask, RefusingBareTask])
def test_a_task_of_another_kind_is_ended_like_any_or_named(
    make_runner: MakeRunner, log_lines: LogLines, task_class: Callable[..., asyncio.Future[Any]]
) -> None:
    refuses = task_class is RefusingBareTask
    runner, door, kept = make_runner(cancel_grace=0.0 if refuses else LONG_S), Door(), list[Any]()

    async def start() -> asyncio.AbstractEventLoop:
        kept.append(task_class(asyncio.sleep(LONG_S)))
        return asyncio.get_running_loop()

    runner.submit(door.walk_through)
    door.wait_for()
    loop = runner.run(start)
    before = time.monotonic()
    runner.destroy()
    assert time.monotonic() - before < LONG_S / 4, "it was told at once"
    assert loop.is_closed()
    assert kept[0].done() is not refuses
    named = ["tasks_abandoned count=1 tasks=['RefusingBareTask']"] if refuses else []
    assert [line.message for line in log_lines] == [*named, "tasks_cancelled_by_destroy count=1"]


@pytest.mark.any_loop
def test_an_error_that_refuses_to_be_touched_is_delivered(healthy: AsyncTaskRunner[Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    class StubbornError(Exception):
        def with_traceback(self, traceback: TracebackType | None) -> Self:
            raise RuntimeError("no")

    class ShyError(Exception):
        @property
        def __traceback__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no")

    for error in (FrozenError(5), StubbornError(), ShyError()):
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

    class Unbound(OddlyNamed):
        """As a proxy is that stands for nothing yet."""

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("not bound")

    for fn in (Nameless(), OddlyNamed(), Unbound()):
        error = ValueError("why")
        assert outcome_of(healthy, fn, error).error is error
        turn_loop(healthy)
    here = "test_a_function_without_a_decent_name_fails_and_completes_like_any.<locals>"
    assert [line.message.partition(" seconds=")[0] for line in log_lines] == [
        f"task_failed task=1 {here}.Nameless",
        f"task_failed task=1 {here}.OddlyNamed",
        f"task_failed task=1 {here}.Unbound",
    ]


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
