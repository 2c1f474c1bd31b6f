"""pause and resume."""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from areal_core._runner.ledger import Ledger
from areal_core._runner.lifecycle import life_of
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerDiedError, RunnerStoppedError
from conftest import MakeRunner
from doors import (
    Blockade,
    Door,
    begun_at_once,
    break_down,
    fail,
    give,
    start_blocked,
    turn_loop,
    use_task_class,
)


def test_nothing_starts_while_paused(make_runner: MakeRunner) -> None:
    runner, ran = make_runner(), list[int]()

    async def run(number: int) -> None:
        ran.append(number)

    seen = [runner.paused]
    runner.pause()
    seen.append(runner.paused)
    for number in range(5):
        runner.submit(run, number)
    turn_loop(runner)
    assert ran == []
    assert runner.stats() == RunnerStats(submitted=5, pending=5, state="paused")
    runner.resume()
    seen.append(runner.paused)
    assert seen == [False, True, False]
    runner.wait(5, timeout=10)
    assert ran == [0, 1, 2, 3, 4]


def test_results_of_running_tasks_are_delivered_while_paused(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for task_id in (1, 2, 3):
        runner.submit(door.walk_through, task_id, task_id=task_id)
    door.wait_for(3)
    claimant = start_blocked(runner.wait_for_task, 2)
    waiter = start_blocked(runner.wait, 2)
    runner.pause()
    runner.submit(give, "pending")
    door.open()
    assert waiter.result() == [1, 3]
    assert claimant.result().data == 2
    assert runner.paused
    assert runner.stats() == RunnerStats(submitted=4, pending=1, collected=3, state="paused")


def test_tasks_go_on_while_paused(make_runner: MakeRunner) -> None:
    runner, first, second = make_runner(), Door(), Door()

    async def walk() -> None:
        await first.walk_through()
        await second.walk_through()

    runner.submit(walk)
    first.wait_for()
    runner.pause()
    first.open()
    second.wait_for()
    second.open()
    assert runner.wait(1, timeout=10) == [None]


def test_what_was_submitted_and_has_not_started_waits_too(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block, "running")
    blockade.wait_until_entered()
    runner.submit(give, "pending")
    runner.pause()
    blockade.lift()
    assert runner.wait(1, timeout=10) == ["running"]
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=2, pending=1, collected=1, state="paused")
    runner.submit(give, "too")
    runner.resume()
    assert runner.wait(2, timeout=10) == ["pending", "too"]


@pytest.mark.any_loop
def test_pausing_and_resuming_twice_is_pausing_and_resuming(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.resume()
    runner.pause()
    runner.pause()
    runner.submit(give, 1)
    runner.resume()
    runner.resume()
    assert runner.wait(1, timeout=10) == [1]
    for number in range(10):
        runner.pause()
        runner.submit(give, number)
        runner.resume()
        runner.submit(give, number)
    assert len(runner.wait(20, timeout=10)) == 20


@pytest.mark.any_loop
def test_a_waiter_blocked_while_paused_is_served_after_resume(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.submit(give, 1)
    waiter = start_blocked(runner.wait, 1)
    runner.resume()
    assert waiter.result() == [1]


def test_resume_starts_work_at_once(make_runner: MakeRunner) -> None:
    runner, door, latencies = make_runner(), Door(), []
    runner.submit(door.walk_through)
    for _ in range(21):
        runner.pause()
        task_id = runner.submit(give)
        turn_loop(runner)
        before = time.monotonic_ns()
        runner.resume()
        latencies.append(runner.wait_for_task(task_id, timeout=10).create_time - before)
    door.open()
    assert min(latencies) > 0
    assert statistics.median(latencies) < 20e6


def test_a_task_may_pause_and_resume(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def pause() -> None:
        runner.pause()

    async def resume() -> None:
        runner.resume()

    runner.submit(pause)
    assert runner.wait(1, timeout=10) == [None]
    runner.submit(give, "pending")
    turn_loop(runner)
    assert runner.stats().pending == 1
    runner.run(resume)
    assert runner.wait(1, timeout=10) == ["pending"]


@pytest.mark.any_loop
def test_a_paused_runner_is_not_paused_when_it_starts_again(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.destroy()
    runner.initialize()
    assert runner.paused is False
    runner.submit(give, 1)
    assert runner.wait(1, timeout=10) == [1]


@pytest.mark.any_loop
def test_pausing_needs_a_running_runner(make_runner: MakeRunner) -> None:
    runner = AsyncTaskRunner[Any](1)
    assert runner.paused is False
    for call in (runner.pause, runner.resume):
        with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
            call()
    runner = make_runner()
    runner.submit(fail, ValueError())
    runner.destroy()
    for call in (runner.pause, runner.resume):
        with pytest.raises(
            RunnerStoppedError, match=r"^the runner was destroyed; initialize\(\) starts it again$"
        ):
            call()
    assert runner.paused is False
    runner = make_runner()
    break_down(runner, OSError("broken"))
    for call in (runner.pause, runner.resume):
        with pytest.raises(RunnerDiedError, match=r"^the runner died: OSError\('broken'\); "):
            call()


@pytest.mark.parametrize(
    "task_class", [None, asyncio.Task, begun_at_once], ids=["our start", "a task factory", "begun at once"]
)
def test_a_pause_within_a_burst_keeps_the_rest_from_starting_and_in_order(
    make_runner: MakeRunner, task_class: Any
) -> None:
    runner = make_runner()
    order: list[int] = []

    async def note(number: int) -> int:
        order.append(number)
        if number == 1:
            runner.pause()
        return number

    runner.run(use_task_class, task_class)
    runner.pause()
    for number in range(5):
        runner.submit(note, number, task_id=number)
    runner.resume()
    assert runner.wait(2, timeout=10) == [0, 1]
    turn_loop(runner)
    assert order == [0, 1]
    assert runner.stats() == RunnerStats(submitted=5, pending=3, collected=2, state="paused")
    runner.submit(note, 5, task_id=5)
    assert runner.cancel(3)
    runner.resume()
    assert [result.task_id for result in runner.as_completed(timeout=10)] == [3, 2, 4, 5]
    assert order == [0, 1, 2, 4, 5]


def test_a_pause_taken_back_within_the_burst_delays_nobody(make_runner: MakeRunner) -> None:
    runner = make_runner()
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)
        if number == 0:
            runner.pause()
            threading.Thread(target=runner.resume).start()

    runner.pause()
    for number in range(5):
        runner.submit(note, number)
    runner.resume()
    runner.wait(5, timeout=10)
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bursts", [1, 2])
def test_a_pause_taken_back_after_it_kept_a_task_from_starting_changes_no_order(
    make_runner: MakeRunner, bursts: int
) -> None:
    """Of the second burst everything is on its way, too, when the pause comes."""
    runner, order = make_runner(), list[int]()
    tasks: list[asyncio.Task[Any]] = []

    async def note(number: int) -> None:
        order.append(number)
        if number == 0:
            runner.pause()

    def launch_another() -> None:
        runner.submit(note, 3)
        life_of(runner)._start_pending()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if not tasks and bursts == 2:
            loop.call_soon(launch_another)
        tasks.append(asyncio.Task(coroutine, loop=loop, **options))
        if len(tasks) == 2:  # the second task is passed over by now, and the third has its turn next
            loop.call_soon(runner.resume)
        return tasks[-1]

    async def use_factory() -> None:
        asyncio.get_running_loop().set_task_factory(factory)

    runner.run(use_factory)
    runner.pause()
    for number in range(3):
        runner.submit(note, number)
    runner.resume()
    runner.wait(2 + bursts, timeout=10)
    assert order == [0, 1, 2, 3][: 2 + bursts]
    assert runner.stats().running == 0


def test_what_is_submitted_in_a_pause_within_a_burst_comes_after_what_that_put_back(
    make_runner: MakeRunner,
) -> None:
    runner, order = make_runner(), list[int]()

    async def note(number: int) -> None:
        order.append(number)
        if number == 0:
            runner.pause()
            runner.submit(note, 3)

    runner.pause()
    for number in range(3):
        runner.submit(note, number)
    runner.resume()
    runner.wait(1, timeout=10)
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=4, pending=3, collected=1, state="paused")
    runner.resume()
    runner.wait(3, timeout=10)
    assert order == [0, 1, 2, 3]


def test_what_is_cancelled_just_before_a_pause_puts_it_back_ends_at_once(make_runner: MakeRunner) -> None:
    runner = make_runner()

    def cancel(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is Ledger.put_back.__code__:
            sys.setprofile(None)
            runner.cancel(2)

    async def pause() -> None:
        runner.pause()
        sys.setprofile(cancel)

    runner.pause()
    runner.submit(pause, task_id=1)
    runner.submit(give, task_id=2)
    runner.submit(give, task_id=3)
    runner.resume()
    assert runner.wait_for_task(2, timeout=10).status == "cancelled"
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=3, pending=1, finished=1, collected=1, state="paused")


def test_what_is_cancelled_while_a_pause_puts_it_back_is_cancelled(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def pause_and_cancel() -> None:
        runner.pause()
        assert runner.cancel(2)

    runner.pause()
    runner.submit(pause_and_cancel, task_id=1)
    runner.submit(give, task_id=2)
    runner.submit(give, task_id=3)
    runner.resume()
    assert runner.wait_for_task(2, timeout=10).status == "cancelled"
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=3, pending=1, finished=1, collected=1, state="paused")


def test_destroy_ends_what_a_pause_put_back(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def pause() -> None:
        runner.pause()

    runner.pause()
    runner.submit(pause, task_id=1)
    runner.submit(give, task_id=2)
    runner.resume()
    runner.wait(1, timeout=10)
    runner.destroy()
    result = runner.wait_for_task(2)
    assert result.status == "cancelled"
    assert result.create_time == result.finish_time
