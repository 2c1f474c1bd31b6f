"""Nothing polls: the loop sleeps while tasks wait, and is woken once for a burst."""

from __future__ import annotations

import asyncio
import selectors
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from areal_core.async_task_runner import AsyncTaskRunner
from conftest import MakeRunner
from doors import LONG_S, Blockade, Door, give, start_blocked, turn_loop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Wakes:
    """How often loops were woken from other threads."""

    def __init__(self) -> None:
        self.count = 0

    def loop_factory(self, loop_name: str) -> LoopFactory:
        """Return what makes loops that count here."""
        wakes = self

        class Counting:
            def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
                wakes.count += 1
                return super().call_soon_threadsafe(*args, **kwargs)  # type: ignore[misc, no-any-return]

        base = uvloop.Loop if loop_name == "uvloop" else asyncio.SelectorEventLoop
        return type("CountingLoop", (Counting, base), {})


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


def test_a_burst_wakes_the_loop_once(make_runner: MakeRunner, loop_name: str, wakes: Wakes) -> None:
    runner, blockade = make_runner(loop_factory=wakes.loop_factory(loop_name)), Blockade()
    runner.submit(blockade.block, "blocker")
    blockade.wait_until_entered()
    before = wakes.count
    for number in range(50):
        runner.submit(give, number)
    assert wakes.count == before + 1
    blockade.lift()
    assert runner.wait(51, timeout=10) == ["blocker", *range(50)]
    turn_loop(runner)
    before = wakes.count
    runner.submit(give)
    assert runner.wait(1, timeout=10) == [None]
    assert wakes.count == before + 1


def test_cancelling_many_wakes_the_loop_once(make_runner: MakeRunner, loop_name: str, wakes: Wakes) -> None:
    runner, blockade, door = make_runner(loop_factory=wakes.loop_factory(loop_name)), Blockade(), Door()
    for task_id in range(20):
        runner.submit(door.walk_through, task_id=task_id)
    door.wait_for(20)
    for _ in range(2):
        blockade = Blockade()
        runner.submit(blockade.block, task_id=100)
        blockade.wait_until_entered()
        before = wakes.count
        assert all(runner.cancel(task_id) for task_id in range(10))
        assert all(runner.cancel(task_id) for task_id in range(10))
        assert wakes.count == before + 1
        blockade.lift()
        assert len(runner.wait(11, timeout=10)) == 11
        turn_loop(runner)
        for task_id in range(10):
            runner.submit(door.walk_through, task_id=task_id)
        door.wait_for(10)


def test_while_paused_and_when_there_is_nothing_to_start_the_loop_is_not_woken(
    make_runner: MakeRunner, loop_name: str, wakes: Wakes
) -> None:
    runner = make_runner(loop_factory=wakes.loop_factory(loop_name))
    turn_loop(runner)
    before = wakes.count
    runner.resume()
    runner.pause()
    runner.pause()
    for number in range(3):
        runner.submit(give, number)
    assert wakes.count == before
    runner.resume()
    assert wakes.count == before + 1
    assert runner.wait(3, timeout=10) == [0, 1, 2]
    runner.resume()
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0)
    assert wakes.count == before + 1


def test_with_thousands_of_parked_tasks_the_loop_sleeps_and_a_round_trip_is_quick(
    make_runner: MakeRunner,
) -> None:
    count = 4000
    runner, door = make_runner(max_queue_size=count + 1), Door()
    for _ in range(count):
        runner.submit(door.walk_through)
    door.wait_for(count)

    async def cpu_s() -> float:
        return time.thread_time()

    turn_loop(runner)
    burnt = []
    for _ in range(3):
        before = runner.run(cpu_s)
        with pytest.raises(TimeoutError):
            runner.wait(1, timeout=0.1)
        burnt.append(runner.run(cpu_s) - before)
    assert min(burnt) < 0.002, "sleeping tasks burn a fiftieth of a core"
    trips = []
    for _ in range(21):
        start = time.perf_counter()
        runner.submit(give)
        runner.wait(1, timeout=10)
        trips.append(time.perf_counter() - start)
    assert statistics.median(trips) < 0.02
    door.open()
    assert len(runner.wait(count, timeout=20)) == count


def test_a_blocked_waiter_burns_nothing(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through)

    def wait() -> float:
        before = time.thread_time()
        runner.wait(1)
        return time.thread_time() - before

    waiter = start_blocked(wait)
    with pytest.raises(TimeoutError):
        runner.wait(2, timeout=0.1)
    door.open()
    assert waiter.result() < 0.02


class Selecting:
    """A loop of asyncio's that tells for how long it would sleep."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []
        self._for_ever = threading.Event()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Make it."""
        selecting = self

        class Recording(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                selecting.timeouts.append(timeout)
                if timeout is None:
                    selecting._for_ever.set()
                return super().select(timeout)

        return asyncio.SelectorEventLoop(Recording())

    def is_idle(self, runner: AsyncTaskRunner[Any]) -> bool:
        """Tell whether the loop sleeps until it is woken, once it has done what is due."""
        self._for_ever.clear()
        turn_loop(runner)
        return self._for_ever.wait(LONG_S)


@pytest.mark.any_loop
def test_an_idle_loop_has_no_timer(make_runner: MakeRunner) -> None:
    selecting, door = Selecting(), Door()
    runner = make_runner(loop_factory=selecting.loop)
    for _ in range(10):
        runner.submit(door.walk_through)
    door.wait_for(10)
    assert selecting.is_idle(runner)
    door.open()
    runner.wait(10, timeout=10)
    assert set(selecting.timeouts) <= {None, 0}


@pytest.mark.any_loop
def test_the_loop_sleeps_after_a_task_has_cancelled_another_of_its_burst(make_runner: MakeRunner) -> None:
    selecting = Selecting()
    runner = make_runner(loop_factory=selecting.loop)

    async def cancel_the_next() -> None:
        assert runner.cancel(2)

    runner.pause()
    runner.submit(cancel_the_next, task_id=1)
    runner.submit(give, task_id=2)
    runner.resume()
    assert runner.wait_for_task(2, timeout=10).status == "cancelled"
    assert selecting.is_idle(runner)
