"""A fault of the library's own: the runner dies, says why, and loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from areal_core._runner import lifecycle
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import ArealError, RunnerDiedError
from areal_core.loop_cleanup import register_loop_cleanup
from conftest import MakeRunner
from doors import Door, break_down, give, start_blocked, turn_loop
from logged import LogLines


def died(call: Callable[[], object]) -> RunnerDiedError:
    with pytest.raises(RunnerDiedError) as raised:
        call()
    return raised.value


def test_a_death_is_logged_with_its_traceback_and_told_to_everybody(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, fault = make_runner(), OSError("broken")
    break_down(runner, fault)
    assert [(line.level, line.message, line.error) for line in log_lines] == [
        ("error", "runner_died error=OSError: broken", fault)
    ]
    calls: list[Callable[[], object]] = [
        lambda: runner.submit(give),
        lambda: runner.with_options(task_timeout=1.0).submit(give),
        lambda: runner.wait(1),
        lambda: runner.wait(1, timeout=0),
        lambda: runner.cancel(1),
        runner.pause,
        runner.resume,
        lambda: runner.run(give),
    ]
    errors = [died(call) for call in calls]
    for error in errors:
        assert str(error) == "the runner died: OSError('broken'); initialize() starts it again"
        assert error.__cause__ is fault
        assert isinstance(error, RuntimeError)
        assert isinstance(error, ArealError)
    assert len({id(error) for error in errors}) == len(calls)
    assert runner.stats() == RunnerStats(state="died")
    assert runner.exiting.is_set()
    assert list(runner.as_completed()) == []


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_fault_of_any_kind_is_a_death(make_runner: MakeRunner, fault: BaseException) -> None:
    runner = make_runner()
    break_down(runner, fault)
    assert died(lambda: runner.submit(give)).__cause__ is fault


def test_nothing_is_lost_by_a_death(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, door = make_runner(), Door()
    runner.submit(give, "finished", task_id=1)
    turn_loop(runner)
    runner.submit(door.walk_through, task_id=2)
    door.wait_for()
    runner.pause()
    runner.submit(give, task_id=3)
    waiter = start_blocked(runner.wait, 3)
    break_down(runner, OSError("broken"))
    assert type(waiter.error()) is RunnerDiedError
    assert runner.stats() == RunnerStats(submitted=3, finished=3, state="died")
    died(lambda: runner.wait(4))
    results = {result.task_id: result for result in runner.wait(3, with_timing=True)}
    assert (results[1].status, results[1].data) == ("completed", "finished")
    assert (results[2].status, results[2].data) == ("cancelled", None)
    assert (results[3].status, results[3].create_time) == ("cancelled", results[3].finish_time)
    assert [line.message.split()[0] for line in log_lines] == ["runner_died", "tasks_cancelled_by_destroy"]


@pytest.mark.any_loop
def test_a_death_really_ends_thread_and_loop(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def running_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loop = runner.run(running_loop)
    thread = runner.thread
    break_down(runner, OSError("broken"))
    assert loop.is_closed()
    assert runner.thread is thread
    assert thread not in threading.enumerate()


@pytest.mark.any_loop
def test_destroy_after_a_death_does_nothing_and_the_cause_is_remembered(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, fault = make_runner(), OSError("broken")
    break_down(runner, fault)
    said = len(log_lines)
    runner.destroy()
    runner.destroy(timeout=0)
    assert died(lambda: runner.submit(give)).__cause__ is fault
    assert runner.stats().state == "died"
    assert len(log_lines) == said
    runner.initialize()
    assert runner.run(give, 1) == 1
    assert runner.stats().state == "running"


@pytest.mark.any_loop
def test_a_fault_while_the_runner_is_destroyed_is_not_a_death(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, cleaning = make_runner(), Door(), Door()

    async def work() -> None:
        try:
            await door.walk_through()
        finally:
            await cleaning.walk_through()

    def fault() -> None:
        raise OSError("broken")

    runner.submit(work)
    door.wait_for()
    ender = start_blocked(runner.destroy)
    cleaning.wait_for()
    assert runner._life is not None
    runner._life.thread.post(fault)
    cleaning.open()
    ender.result()
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")


@pytest.mark.any_loop
def test_a_second_fault_changes_nothing(make_runner: MakeRunner) -> None:
    runner = make_runner()
    faults = [OSError("first"), OSError("second")]

    def fail(number: int) -> None:
        raise faults[number]

    async def fail_twice() -> None:
        assert runner._life is not None
        for number in range(2):
            runner._life.thread.call_soon(fail, number)

    runner.submit(fail_twice)
    assert runner.thread is not None
    runner.thread.join(10)
    assert died(lambda: runner.submit(give)).__cause__ is faults[0]


def test_a_loop_that_breaks_is_a_death(make_runner: MakeRunner, loop_name: str) -> None:
    fault = OSError("broken")
    faults: list[BaseException] = []
    base: Any = uvloop.Loop if loop_name == "uvloop" else asyncio.SelectorEventLoop

    class BreakingLoop(base):  # type: ignore[misc]
        def run_forever(self) -> None:
            super().run_forever()
            if faults:
                raise faults.pop()

    async def break_loop() -> None:
        faults.append(fault)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    runner = make_runner(loop_factory=BreakingLoop)
    runner.submit(break_loop, task_id=1)
    assert runner.thread is not None
    runner.thread.join(10)
    assert died(lambda: runner.submit(give)).__cause__ is fault
    assert runner.wait_for_task(1).status == "cancelled"


@pytest.mark.any_loop
def test_each_way_into_the_loop_is_guarded(make_runner: MakeRunner) -> None:
    def fault() -> None:
        raise OSError("broken")

    async def schedule(runner: AsyncTaskRunner[Any], how: str) -> None:
        assert runner._life is not None
        thread = runner._life.thread
        if how == "call_soon":
            thread.call_soon(fault)
        elif how == "call_later":
            thread.call_later(0.001, fault)
        else:
            thread.post(fault)

    for how in ("call_soon", "call_later", "post"):
        runner = make_runner()
        runner.submit(schedule, runner, how)
        assert runner.thread is not None
        runner.thread.join(10)
        assert repr(died(lambda runner=runner: runner.submit(give)).__cause__) == "OSError('broken')"  # type: ignore[misc]


@pytest.mark.any_loop
def test_a_start_after_a_death_does_not_wait_for_ever_for_the_thread_that_died(
    make_runner: MakeRunner, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "DESTROY_TIMEOUT_S", 0.1)
    runner, may_end = make_runner(leave=True), threading.Event()

    async def register() -> None:
        register_loop_cleanup(may_end.wait)

    def fault() -> None:
        raise OSError("broken")

    runner.run(register)
    life = runner._life
    assert life is not None
    life.thread.post(fault)
    assert runner.exiting.wait(10)
    try:
        runner.initialize()
        assert [line for line in log_lines if "loop_thread_left_behind" in line.message]
        assert runner.run(give, 1) == 1
    finally:
        may_end.set()
        life.thread.thread.join(10)
