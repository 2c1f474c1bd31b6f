"""What the constructor takes."""

from __future__ import annotations

import asyncio
import inspect
import math
from fractions import Fraction
from typing import Any

import pytest

from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from conftest import MakeRunner
from doors import Door, give
from logged import LogLines


@pytest.mark.any_loop
def test_constructing_starts_nothing() -> None:
    runner = AsyncTaskRunner[int](4)
    assert runner.thread is None
    assert runner.stats() == RunnerStats(0, 0, 0, 0, 0, 0, 0, "new")
    assert not runner.exiting.is_set()


@pytest.mark.any_loop
@pytest.mark.parametrize("size", [0, -1])
def test_the_bound_has_to_be_at_least_one(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^max_queue_size={size} has to be at least 1$"):
        AsyncTaskRunner(size)


@pytest.mark.any_loop
@pytest.mark.parametrize("size", [True, 1.0, "1", None])
def test_the_bound_has_to_be_an_int(size: Any) -> None:
    with pytest.raises(TypeError, match=rf"^max_queue_size has to be an int, not {size!r}$"):
        AsyncTaskRunner(size)


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_the_default_deadline_has_to_be_above_zero(timeout: float) -> None:
    with pytest.raises(ValueError, match="task_timeout") as raised:
        AsyncTaskRunner(1, task_timeout=timeout)
    assert str(raised.value) == f"task_timeout={timeout!r} has to be above 0 seconds, or None"
    with pytest.raises(TypeError, match=r"^task_timeout has to be seconds or None, not '1'$"):
        AsyncTaskRunner(1, task_timeout="1")  # type: ignore[arg-type]


@pytest.mark.any_loop
@pytest.mark.parametrize("grace", [-0.1, math.nan])
def test_the_grace_has_to_be_at_least_zero(grace: float) -> None:
    with pytest.raises(ValueError, match="cancel_grace") as raised:
        AsyncTaskRunner(1, cancel_grace=grace)
    assert str(raised.value) == f"cancel_grace={grace!r} has to be at least 0 seconds, or None"


@pytest.mark.any_loop
@pytest.mark.parametrize("grace", [None, math.inf])
def test_the_grace_has_to_be_finite(grace: Any) -> None:
    with pytest.raises(ValueError, match="cancel_grace") as raised:
        AsyncTaskRunner(1, cancel_grace=grace)
    assert str(raised.value) == f"cancel_grace={grace!r} has to be finite, or nothing would bound destroy()"
    with pytest.raises(TypeError, match=r"^cancel_grace has to be seconds or None, not True$"):
        AsyncTaskRunner(1, cancel_grace=True)


@pytest.mark.any_loop
@pytest.mark.parametrize("factory", [5, "uvloop", asyncio])
def test_the_loop_factory_has_to_be_a_function(factory: Any) -> None:
    with pytest.raises(TypeError) as raised:
        AsyncTaskRunner(1, loop_factory=factory)
    assert str(raised.value) == f"loop_factory={factory!r} cannot be called; pass a function, or None"


@pytest.mark.any_loop
def test_only_what_the_old_class_took_may_be_given_by_position() -> None:
    AsyncTaskRunner(1, 0.05, 0.5, False)
    with pytest.raises(TypeError, match="positional"):
        AsyncTaskRunner(1, 0.05, 0.5, False, 1.0)  # type: ignore[call-arg]


@pytest.mark.any_loop
def test_what_is_not_given_is_as_documented() -> None:
    parameters = inspect.signature(AsyncTaskRunner).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "max_queue_size": inspect.Parameter.empty,
        "poll_wait_time": 0.05,
        "poll_sleep_time": 0.5,
        "enable_tracing": False,
        "task_timeout": None,
        "cancel_grace": 5.0,
        "loop_factory": None,
    }
    assert inspect.signature(AsyncTaskRunner.destroy).parameters["timeout"].default == 30.0


@pytest.mark.any_loop
def test_the_arguments_of_the_old_class_for_polling_have_no_effect(make_runner: MakeRunner) -> None:
    runner = make_runner(poll_wait_time=1e9, poll_sleep_time=-1)
    runner.submit(give, 1)
    assert runner.wait(1, timeout=10) == [1]


@pytest.mark.any_loop
def test_numbers_of_any_kind_are_seconds(make_runner: MakeRunner) -> None:
    runner = make_runner(task_timeout=Fraction(1, 100), cancel_grace=Fraction(1, 100))
    runner.submit(Door().insist, task_id=1)
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    assert str(result.error) == "task 1 exceeded its deadline of 0.01 s"
    runner = make_runner(task_timeout=math.inf)
    runner.submit(give, 1)
    assert runner.wait(1, timeout=10) == [1]


def test_the_loop_is_made_by_the_factory_in_the_loop_thread(
    loop_factory: Any, make_runner: MakeRunner
) -> None:
    made = []

    def factory() -> asyncio.AbstractEventLoop:
        import threading

        loop: asyncio.AbstractEventLoop = loop_factory()
        made.append((loop, threading.current_thread()))
        return loop

    async def running() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    runner = make_runner(loop_factory=factory)
    assert made == [(runner.run(running), runner.thread)]


@pytest.mark.any_loop
def test_without_a_factory_the_loop_is_a_uvloop(make_runner: MakeRunner, log_lines: LogLines) -> None:
    import uvloop

    async def running() -> type:
        return type(asyncio.get_running_loop())

    assert make_runner(loop_factory=None).run(running) is uvloop.Loop
    assert log_lines == []


@pytest.mark.any_loop
@pytest.mark.parametrize("task_id", [True, 1.0, "1", [1], None])
def test_what_is_no_id_is_refused_by_whoever_asks_for_a_task(make_runner: MakeRunner, task_id: Any) -> None:
    runner = make_runner()
    for ask in (runner.wait_for_task, runner.cancel):
        with pytest.raises(TypeError, match=r"^task_id has to be an int, not "):
            ask(task_id)
