"""run and arun: coroutines that belong to one caller, outside the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from areal_core._runner.gate import Gate
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerDiedError, RunnerStoppedError
from conftest import MakeRunner
from doors import (
    LONG_S,
    Blockade,
    Caller,
    Door,
    break_down,
    fail,
    give,
    in_thread,
    interrupt_when,
    start_blocked,
)
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


# -- run --------------------------------------------------------------------------------------------


def test_run_gives_the_coroutines_value(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def where(a: int, *, b: int) -> tuple[int, int, threading.Thread]:
        await asyncio.sleep(0)
        return a, b, threading.current_thread()

    assert runner.run(where, 1, b=2) == (1, 2, runner.thread)


def test_run_raises_the_coroutines_exception_with_its_traceback(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, error = make_runner(), ValueError("why")
    with pytest.raises(ValueError, match="why") as raised:
        runner.run(fail, error)
    assert raised.value is error
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-1] == "fail"
    assert "_play" not in names
    assert error.__context__ is None
    assert log_lines == []


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError("mine"), TimeoutError()],
)
def test_run_raises_whatever_the_coroutine_raises_in_the_caller_alone(
    make_runner: MakeRunner, log_lines: LogLines, error: BaseException
) -> None:
    runner = make_runner()
    with pytest.raises(type(error)) as raised:
        runner.run(fail, error)
    assert raised.value is error
    assert runner.run(give, "goes on") == "goes on"
    assert log_lines == []


@pytest.mark.any_loop
def test_an_error_raised_does_not_keep_its_callers_frame_alive(make_runner: MakeRunner) -> None:
    import gc
    import weakref

    class Local:
        pass

    runner = make_runner()

    async def fail_by_itself() -> None:
        raise ValueError("why")

    def call() -> weakref.ref[Local]:
        local = Local()
        with contextlib.suppress(ValueError):
            runner.run(fail_by_itself)
        return weakref.ref(local)

    gc.disable()
    try:
        trace = call()
        assert trace() is None
    finally:
        gc.enable()


def test_calls_count_against_nothing(make_runner: MakeRunner) -> None:
    runner, door = make_runner(max_queue_size=1), Door()
    runner.submit(door.walk_through)
    door.wait_for()
    callers = [start_blocked(runner.run, door.walk_through, number) for number in range(3)]
    door.wait_for(3)
    assert runner.stats() == RunnerStats(submitted=1, running=1, state="running")
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0)
    door.open()
    assert [caller.result() for caller in callers] == [0, 1, 2]
    assert runner.wait(1, timeout=10) == [None]
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="running")


def test_calls_work_while_paused(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give)
    assert runner.run(give, 1) == 1
    assert asyncio.run(runner.arun(give, 2)) == 2
    assert runner.stats().pending == 1


@pytest.mark.any_loop
def test_a_call_runs_in_its_own_copy_of_the_callers_context(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def paint() -> str:
        before = color.get()
        color.set("painted")
        return before

    def call() -> tuple[str, str]:
        color.set("caller's")
        return runner.run(paint), color.get()

    async def acall() -> tuple[str, str]:
        color.set("acaller's")
        return await runner.arun(paint), color.get()

    assert contextvars.copy_context().run(call) == ("caller's", "caller's")
    assert asyncio.run(acall()) == ("acaller's", "acaller's")


@pytest.mark.any_loop
def test_what_is_no_async_function_fails_in_the_caller(make_runner: MakeRunner) -> None:
    runner = make_runner()
    coroutine = give()
    for call in (runner.run, lambda thing: asyncio.run(runner.arun(thing))):
        with pytest.raises(TypeError, match=r"^expected an async function and its arguments, not <coroutine"):
            call(coroutine)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^expected an async function and its arguments, not 5; "):
            call(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="await"):
            call(lambda: 5)  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError, match=r"fail\(\) missing 1 required positional argument"):
            call(fail)
    coroutine.close()
    assert runner.run(give, 1) == 1


def test_run_on_the_loop_thread_raises(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def nested() -> None:
        runner.run(give)

    with pytest.raises(RuntimeError) as raised:
        runner.run(nested)
    assert type(raised.value) is RuntimeError
    assert str(raised.value) == (
        "run() on the runner's own loop thread would wait for itself for ever; "
        "call it from another thread, or await arun()"
    )


def test_an_interrupt_in_run_cancels_the_coroutine(make_runner: MakeRunner) -> None:
    runner, door, cancelled = make_runner(), Door(), threading.Event()

    async def work() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(KeyboardInterrupt), interrupt_when(Gate.wait, "call", meanwhile=door.wait_for):
        runner.run(work)
    assert cancelled.wait(LONG_S)
    assert runner.run(give, 1) == 1


def test_an_interrupt_in_run_before_the_coroutines_first_step_is_as_good(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block)
    blockade.wait_until_entered()
    with pytest.raises(KeyboardInterrupt), interrupt_when(Gate.wait, "call"):
        runner.run(Door().walk_through)
    blockade.lift()
    assert runner.run(give, 1) == 1
    assert runner.wait(1, timeout=10) == [None]


def test_many_threads_call_at_once_and_each_gets_its_own_value(make_runner: MakeRunner) -> None:
    runner = make_runner()

    def call(mine: int) -> list[tuple[int, int]]:
        return [runner.run(give, (mine, number)) for number in range(20)]

    callers = [Caller(call, mine) for mine in range(8)]
    assert [caller.result() for caller in callers] == [
        [(mine, number) for number in range(20)] for mine in range(8)
    ]


# -- when the runner does not run -------------------------------------------------------------------


@pytest.mark.any_loop
def test_calls_need_a_running_runner(make_runner: MakeRunner) -> None:
    runner = AsyncTaskRunner[Any](1)
    with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
        runner.run(give)
    with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
        asyncio.run(runner.arun(give))
    runner = make_runner()
    runner.destroy()
    with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
        runner.run(give)
    with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
        asyncio.run(runner.arun(give))
    runner = make_runner()
    break_down(runner, OSError("broken"))
    with pytest.raises(RunnerDiedError, match=r"^the runner died: ") as raised:
        runner.run(give)
    assert repr(raised.value.__cause__) == "OSError('broken')"


def test_destroy_ends_calls_at_once_with_an_error(make_runner: MakeRunner, loop_factory: LoopFactory) -> None:
    runner, door, cancelled = make_runner(), Door(), []

    async def work(number: int) -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def main() -> None:
        await runner.arun(work, 2)

    def run_loop() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as mine:
            mine.run(main())

    callers = [start_blocked(runner.run, work, 1), Caller(run_loop)]
    door.wait_for(2)
    runner.destroy()
    for caller in callers:
        error = caller.error()
        assert type(error) is RunnerStoppedError
        assert str(error) == "the runner was destroyed; initialize() starts it again"
    assert sorted(cancelled) == [1, 2]


def test_a_call_that_refuses_to_end_does_not_keep_its_caller(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    caller = start_blocked(runner.run, door.insist)
    door.wait_for()
    runner.destroy()
    assert type(caller.error()) is RunnerStoppedError
    assert [line[:2] for line in log_lines] == [
        ("warning", "tasks_abandoned count=1 tasks=['call of Door.insist']")
    ]


def test_a_call_that_is_in_its_first_step_at_the_end_and_refuses_has_its_name(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, blockade = make_runner(cancel_grace=0), Door(), Blockade()

    async def refuse() -> None:
        blockade.enter()
        await door.insist()

    caller = Caller(runner.run, refuse)
    blockade.wait_until_entered()
    ender = start_blocked(runner.destroy)
    blockade.lift()
    ender.result()
    assert type(caller.error()) is RunnerStoppedError
    assert "<locals>.refuse'" in log_lines.of("warning")[0]


@pytest.mark.parametrize("error", [None, ValueError("its own")])
def test_a_call_that_has_ended_when_the_runner_does_has_its_own_end_and_nothing_is_logged(
    make_runner: MakeRunner, log_lines: LogLines, error: Exception | None
) -> None:
    runner, blockade = make_runner(), Blockade()

    async def end_just_before() -> str:
        await asyncio.sleep(0)  # what ends in its first step is told of at once
        asyncio.get_running_loop().call_soon(blockade.enter)  # its caller is told after that
        if error is not None:
            raise error
        return "value"

    caller = start_blocked(runner.run, end_just_before)
    blockade.wait_until_entered()
    destroyer = Caller(runner.destroy)
    outcome = caller.error() or caller.result()
    blockade.lift()
    destroyer.result()
    assert outcome == (error or "value")
    assert log_lines == []


def test_what_ends_in_its_first_step_is_told_of_before_the_loop_does_anything_else(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    told: queue.SimpleQueue[object] = queue.SimpleQueue()

    def value_of_a_task() -> object:
        return runner.wait_for_task(runner.submit(keep_it_from_going_on)).data

    async def keep_it_from_going_on() -> str:
        asyncio.get_running_loop().call_soon(lambda: told.get(timeout=LONG_S / 2))
        return "value"

    for ask in (value_of_a_task, lambda: runner.run(keep_it_from_going_on)):
        told.put(ask())
    assert runner.run(give, "next") == "next"
    assert told.empty()


def test_a_call_under_way_when_the_runner_dies_is_told_the_cause(make_runner: MakeRunner) -> None:
    runner, door, fault = make_runner(), Door(), OSError("broken")
    caller = start_blocked(runner.run, door.walk_through)
    break_down(runner, fault)
    error = caller.error()
    assert type(error) is RunnerDiedError
    assert error.__cause__ is fault


@pytest.mark.any_loop
def test_calls_made_while_the_runner_is_destroyed_return_or_raise_but_never_hang(
    make_runner: MakeRunner,
) -> None:
    together = threading.Barrier(3)

    def call_until_refused(runner: AsyncTaskRunner[Any]) -> str:
        together.wait()
        try:
            while True:
                assert runner.run(give, "value") == "value"
        except RunnerStoppedError as error:
            return str(error)

    for _ in range(10):
        runner = make_runner()
        callers = [Caller(call_until_refused, runner) for _ in range(2)]
        together.wait()
        runner.destroy()
        assert {caller.result() for caller in callers} == {
            "the runner was destroyed; initialize() starts it again"
        }


@pytest.mark.any_loop
def test_a_call_waits_for_a_blocked_loop_and_is_released_when_that_is_given_up(
    make_runner: MakeRunner,
) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.submit(blockade.block)
    blockade.wait_until_entered()
    caller = start_blocked(runner.run, give)
    runner.destroy(timeout=0.02)
    assert type(caller.error()) is RunnerStoppedError
    assert runner.thread is not None
    blockade.lift()
    runner.thread.join(LONG_S)


@pytest.mark.any_loop
def test_a_thread_that_has_the_dead_loop_threads_number_is_not_taken_for_it(make_runner: MakeRunner) -> None:
    """The system gives a number again at once."""
    runner = make_runner()

    def use() -> int:
        with pytest.raises(RunnerStoppedError):
            runner.run(give)
        with pytest.raises(RunnerStoppedError):
            runner.wait(1)
        with pytest.raises(RunnerStoppedError):
            asyncio.run(runner.arun(give))
        runner.destroy()
        runner.initialize()
        return threading.get_ident()

    for _ in range(50):
        assert runner.thread is not None
        number = runner.thread.ident
        runner.destroy()
        if in_thread(use) == number:
            return
    pytest.skip("this system does not give the number again")
