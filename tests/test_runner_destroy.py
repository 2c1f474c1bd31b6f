"""destroy: what it ends, who may call it, and how long it takes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from areal_core._runner import exit_hook, life
from areal_core._runner.loop_thread import LoopThread
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerStoppedError
from conftest import MakeRunner
from doors import (
    LONG_S,
    Blockade,
    Caller,
    Door,
    give,
    outcomes,
    running_loop,
    start_blocked,
    turn_loop,
    work,
)
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


# -- what it ends -----------------------------------------------------------------------------------


def test_what_it_ends_is_cancelled_counted_in_one_line_and_collectable_with_the_rest(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(), Door()
    runner.submit(give, "finished", task_id=1)
    turn_loop(runner)
    for task_id in (2, 3):
        runner.submit(door.walk_through, task_id=task_id)
    door.wait_for(2)
    runner.pause()
    for task_id in (4, 5, 6):
        runner.submit(give, task_id=task_id)
    runner.destroy()
    assert runner.stats() == RunnerStats(submitted=6, finished=6, state="stopped")
    assert outcomes(runner) == {
        1: ("completed", "finished"),
        **dict.fromkeys(range(2, 7), ("cancelled", None)),
    }
    assert runner.stats() == RunnerStats(submitted=6, collected=6, state="stopped")
    assert [line[:2] for line in log_lines] == [("info", "tasks_cancelled_by_destroy count=5")]


def test_what_it_ended_may_still_be_claimed(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.destroy()
    result = runner.wait_for_task(1)
    assert (result.status, result.data) == ("cancelled", None)
    assert type(result.error) is asyncio.CancelledError
    assert result.create_time < result.finish_time


def test_an_idle_runner_ends_without_a_word(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner = make_runner()
    runner.submit(give, 1)
    assert runner.wait(1, timeout=10) == [1]
    runner.destroy()
    assert log_lines == []


def test_thread_and_loop_really_end(make_runner: MakeRunner) -> None:
    runner = make_runner()
    loop, thread = runner.run(running_loop), runner.thread
    assert thread is not None
    runner.destroy()
    assert loop.is_closed()
    assert not thread.is_alive()
    assert runner.thread is thread
    assert runner.exiting.is_set()
    assert runner._life not in exit_hook._live


@contextlib.contextmanager
def after_the_last_line(action: Callable[[], object]) -> Iterator[None]:
    """Have the threads that are started meanwhile do *action* after their last line, as a profiler may."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is LoopThread._main.__code__:
            action()

    threading.setprofile(profile)
    try:
        yield
    finally:
        threading.setprofile(None)


@pytest.mark.any_loop
def test_it_waits_for_the_very_end_of_the_thread(make_runner: MakeRunner) -> None:
    with after_the_last_line(lambda: threading.Event().wait(0.05)):
        runner = make_runner()
    runner.destroy()
    assert runner.thread is not None
    assert not runner.thread.is_alive()


@pytest.mark.any_loop
def test_it_waits_no_longer_for_a_thread_that_is_done_and_does_not_end(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_JOIN_S", 0.05)  # instead of a second
    go_on = threading.Event()
    with after_the_last_line(lambda: go_on.wait(LONG_S)):
        runner = make_runner()
    runner.destroy()
    assert runner.thread is not None
    assert runner.thread.is_alive()
    go_on.set()
    runner.thread.join(LONG_S)


def test_tasks_may_clean_up_while_it_waits_and_nothing_new_is_accepted(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, cleaning, done = make_runner(), Door(), Door(), list[str]()
    runner.submit(work, door, cleaning, done, task_id=1)
    door.wait_for()
    ender = start_blocked(runner.destroy)
    cleaning.wait_for()
    assert runner.exiting.is_set()
    assert runner.stats() == RunnerStats(submitted=1, running=1, state="stopped")
    calls: list[Callable[[], object]] = [
        lambda: runner.submit(give),
        lambda: runner.run(give),
        lambda: runner.cancel(1),
        runner.pause,
        runner.resume,
        lambda: runner.wait(1),
        lambda: runner.wait_for_task(1),
        lambda: next(iter(runner.as_completed())),
    ]
    for call in calls:
        with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
            call()
    assert not ender.is_done()
    cleaning.open()
    ender.result()
    assert done == ["cleaned"]
    assert outcomes(runner) == {1: ("cancelled", None)}
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]


def test_a_refused_wait_for_task_gives_its_claim_back(make_runner: MakeRunner) -> None:
    runner, door, cleaning = make_runner(), Door(), Door()
    runner.submit(work, door, cleaning, [], task_id=1)
    door.wait_for()
    ender = start_blocked(runner.destroy)
    cleaning.wait_for()
    for _ in range(2):
        with pytest.raises(RunnerStoppedError):
            runner.wait_for_task(1)
    cleaning.open()
    ender.result()
    assert runner.wait(1) == [None]


def test_what_a_task_raises_when_it_is_ended_is_the_context_of_its_error(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, error = make_runner(), Door(), ValueError("while cleaning up")

    async def fail_to_clean_up() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            raise error from None

    runner.submit(fail_to_clean_up, task_id=1)
    door.wait_for()
    runner.destroy()
    result = runner.wait_for_task(1)
    assert repr(result.error) == "CancelledError('task 1 was cancelled')"
    assert result.error is not None
    assert result.error.__context__ is error
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]


def test_outcomes_decided_before_stand(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, doors, cleaning = make_runner(), [Door() for _ in range(3)], Door()
    runner.submit(work, doors[0], cleaning, [], task_id=1)
    runner.with_options(task_timeout=0.01, task_id=2).submit(work, doors[1], cleaning, [])
    runner.submit(work, doors[2], cleaning, [], task_id=3)
    for door in doors:
        door.wait_for()
    runner.cancel(1)
    cleaning.wait_for(2)
    ender = start_blocked(runner.destroy)
    cleaning.wait_for(1)
    cleaning.open()
    ender.result()
    assert {task_id: status for task_id, (status, _) in outcomes(runner).items()} == {
        1: "cancelled",
        2: "timed_out",
        3: "cancelled",
    }
    said = sorted(line.message.split()[0] for line in log_lines)
    assert said == ["task_timed_out", "tasks_cancelled_by_destroy"]
    assert "tasks_cancelled_by_destroy count=1" in log_lines.of("info")


def test_one_that_is_cleaning_up_already_is_not_disturbed(make_runner: MakeRunner) -> None:
    runner, door, cleaning, done = make_runner(), Door(), Door(), list[str]()
    runner.submit(work, door, cleaning, done, task_id=1)
    door.wait_for()
    runner.cancel(1)
    cleaning.wait_for()
    ender = start_blocked(runner.destroy)
    # One more task, which comes to its end only in the next turns: the first round has been by then.
    cleaning.open()
    ender.result()
    assert done == ["cleaned"]


def test_a_task_that_starts_others_while_it_ends_is_followed_in_rounds(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, ended = make_runner(), Door(), list[str]()

    async def child(depth: int) -> None:
        try:
            await Door().walk_through()
        finally:
            ended.append(f"child {depth}")
            if depth < 2:
                keep.append(asyncio.create_task(child(depth + 1)))

    keep: list[asyncio.Task[None]] = []

    async def parent() -> None:
        try:
            await door.walk_through()
        finally:
            keep.append(asyncio.create_task(child(0)))
            await asyncio.sleep(0)

    runner.submit(parent)
    door.wait_for()
    runner.destroy()
    assert ended == ["child 0", "child 1", "child 2"]
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]


def test_child_tasks_left_behind_by_their_parents_are_ended(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, door, ended = make_runner(), Door(), []

    async def child() -> None:
        try:
            await door.walk_through()
        finally:
            ended.append(True)

    async def parent() -> asyncio.Task[None]:
        return asyncio.create_task(child())

    runner.submit(parent)
    door.wait_for()
    child_task = runner.wait(1, timeout=10)[0]
    assert isinstance(child_task, asyncio.Task)
    runner.destroy()
    assert ended == [True]
    assert child_task.cancelled()
    del child_task
    gc.collect()
    assert log_lines == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# -- calling it -------------------------------------------------------------------------------------


@pytest.mark.any_loop
def test_before_initialize_it_does_nothing(loop_factory: LoopFactory) -> None:
    runner = AsyncTaskRunner[Any](4, loop_factory=loop_factory)
    runner.destroy()
    runner.destroy(timeout=0)
    assert not runner.exiting.is_set()
    assert runner.stats() == RunnerStats(state="new")
    runner.initialize()
    assert runner.run(give, 1) == 1
    runner.destroy()


@pytest.mark.any_loop
def test_a_second_time_it_does_nothing(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner = make_runner()
    runner.submit(give, "kept")
    turn_loop(runner)
    for timeout in (30.0, 0, None, math.inf):
        runner.destroy(timeout)
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
    assert runner.wait(1) == ["kept"]
    assert log_lines == []


def test_several_threads_may_call_it_at_once_and_all_return_after_the_end(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, cleaning, together = make_runner(), Door(), Door(), threading.Barrier(5)
    runner.submit(work, door, cleaning, [], task_id=1)
    door.wait_for()
    thread = runner.thread
    assert thread is not None

    def destroy() -> bool:
        together.wait()
        runner.destroy()
        return thread.is_alive()

    callers = [Caller(destroy) for _ in range(5)]
    for caller in callers:
        caller.wait_until_blocked()
    cleaning.open()
    assert [caller.result() for caller in callers] == [False] * 5
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]


@pytest.mark.any_loop
def test_without_a_timeout_it_waits_as_long_as_it_takes(make_runner: MakeRunner) -> None:
    runner, door, cleaning, done = make_runner(), Door(), Door(), list[str]()
    runner.submit(work, door, cleaning, done)
    door.wait_for()
    ender = start_blocked(runner.destroy, None)
    cleaning.wait_for()
    assert not ender.is_done()
    cleaning.open()
    ender.result()
    assert done == ["cleaned"]
    assert runner.thread is not None
    assert not runner.thread.is_alive()


def test_on_the_loop_thread_it_raises_and_harms_nothing(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def destroy() -> None:
        runner.destroy()

    runner.submit(destroy, task_id=1)
    result = runner.wait_for_task(1, timeout=10)
    assert result.status == "failed"
    assert type(result.error) is RuntimeError
    assert str(result.error) == (
        "destroy() on the runner's own loop thread would wait for itself for ever; "
        "call it from another thread, or await arun()"
    )
    assert not runner.exiting.is_set()
    runner.submit(give, "unharmed")
    assert runner.wait(1, timeout=10) == ["unharmed"]


@pytest.mark.any_loop
def test_a_task_of_another_runner_may_call_it(make_runner: MakeRunner) -> None:
    one, other = make_runner(), make_runner()

    async def destroy() -> None:
        other.destroy()

    one.run(destroy)
    assert other.stats().state == "stopped"
    assert one.stats().state == "running"


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan])
def test_its_timeout_has_to_be_at_least_zero(make_runner: MakeRunner, timeout: float) -> None:
    runner = make_runner()
    with pytest.raises(ValueError, match="timeout=") as raised:
        runner.destroy(timeout)
    assert str(raised.value) == f"timeout={timeout!r} has to be at least 0 seconds, or None"
    with pytest.raises(TypeError, match=r"^timeout has to be seconds or None, not True$"):
        runner.destroy(True)
    assert runner.run(give, 1) == 1


@pytest.mark.any_loop
def test_with_a_timeout_of_zero_it_does_not_wait(make_runner: MakeRunner) -> None:
    runner, door = make_runner(leave=True), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    before = time.monotonic()
    runner.destroy(timeout=0)
    assert time.monotonic() - before < 1
    assert runner.stats().finished == 1
    assert outcomes(runner) == {1: ("cancelled", None)}
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    assert not runner.thread.is_alive()


@pytest.mark.any_loop
def test_a_call_with_a_shorter_timeout_returns_and_spoils_nothing_for_one_that_waits_longer(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block, task_id=1)
    blockade.wait_until_entered()
    patient = start_blocked(runner.destroy, 10.0)
    runner.destroy(timeout=0.02)
    assert runner.stats().finished == 0
    assert log_lines == []
    blockade.lift()
    patient.result()
    assert runner.thread is not None
    assert not runner.thread.is_alive()


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [None, math.inf, 1e300])
def test_a_timeout_without_end_leaves_nothing_open(make_runner: MakeRunner, timeout: float | None) -> None:
    runner = make_runner()
    loop = runner.run(running_loop)
    runner.run(asyncio.to_thread, int)
    runner.destroy(timeout)
    assert loop.is_closed()


@pytest.mark.any_loop
def test_a_short_timeout_is_enough_to_close_the_loop_whatever_is_on_it(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(), Door()
    loop = runner.run(running_loop)
    runner.submit(door.insist)
    door.wait_for()
    runner.destroy(timeout=0.4)
    assert loop.is_closed()
    assert [line.message.split()[0] for line in log_lines] == ["tasks_abandoned"]
