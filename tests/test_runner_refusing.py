"""Tasks that do not end when destroy tells them to."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from areal_core.async_task_runner import RunnerStats
from conftest import MakeRunner
from doors import (
    LONG_S,
    Door,
    running_loop,
    turn_loop,
)
from logged import LogLines


def test_a_task_that_refuses_is_named_and_abandoned_within_the_timeout_and_then_silent(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.insist, "too late", task_id=1)
    runner.submit(door.walk_through, task_id=2)
    door.wait_for(2)
    loop = runner.run(running_loop)
    before = time.monotonic()
    runner.destroy(timeout=0.5)
    assert time.monotonic() - before < 0.5
    assert loop.is_closed()
    assert runner.stats() == RunnerStats(submitted=2, finished=2, abandoned=1, state="stopped")
    result = runner.wait_for_task(1)
    assert (result.status, result.data) == ("cancelled", None)
    assert repr(result.error) == "CancelledError('task 1 was cancelled')"
    assert result.create_time < result.finish_time
    assert [line[:2] for line in log_lines] == [
        ("warning", "tasks_abandoned count=1 tasks=['1 Door.insist']"),
        ("info", "tasks_cancelled_by_destroy count=1"),
    ]
    runner.initialize()
    del result, loop
    gc.collect()
    runner.destroy()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_one_that_refuses_to_be_closed_too_says_nothing_either(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()

    async def refuse_everything() -> None:
        loop = asyncio.get_running_loop()
        while not door.is_open:
            try:
                await loop.create_future()
            except BaseException:
                continue

    runner.submit(refuse_everything, task_id=1)
    turn_loop(runner)
    runner.destroy()
    assert runner.wait_for_task(1).status == "cancelled"
    runner.initialize()
    gc.collect()
    door.open()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


class _HoldsOn(Coroutine[Any, None, None]):
    """A coroutine of another kind, as compilers make them, that refuses all that can be asked of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, collected: list[str]) -> None:
        self._loop = loop
        self._collected = collected
        self.itself = self  # whoever looks for what it awaits in what it refers to goes round for ever

    def send(self, value: Any) -> Any:
        return next(self._loop.create_future().__await__())

    def throw(self, *_: Any) -> Any:
        return self.send(None)

    def close(self) -> None:
        raise RuntimeError("refused")

    def __await__(self) -> Generator[Any, None, None]:
        raise NotImplementedError

    def __del__(self) -> None:
        self._collected.append("complains")


def test_a_coroutine_of_another_kind_that_refuses_to_be_closed_is_kept(make_runner: MakeRunner) -> None:
    runner, collected = make_runner(cancel_grace=0), list[str]()

    async def start() -> None:
        loop = asyncio.get_running_loop()
        kept.append(loop.create_task(_HoldsOn(loop, collected)))

    kept: list[asyncio.Task[None]] = []
    runner.run(start)
    turn_loop(runner)
    runner.destroy()
    runner.initialize()
    kept.clear()
    gc.collect()
    assert collected == []


def test_what_is_left_on_a_closed_loop_is_closed_and_kept_by_nothing(make_runner: MakeRunner) -> None:
    """Its finally clauses run, innermost first, and all that it held is free."""
    runner, closed = make_runner(cancel_grace=0), list[str]()

    class Insists:
        async def inner(self) -> None:
            try:
                while True:
                    try:
                        await asyncio.get_running_loop().create_future()
                    except asyncio.CancelledError:
                        continue
            finally:
                closed.append("inner")

        async def __call__(self) -> None:
            try:
                await self.inner()
            finally:
                closed.append("outer")

    task = Insists()
    runner.submit(task, task_id=1)
    turn_loop(runner)
    runner.destroy()
    assert closed == ["inner", "outer"]
    assert runner.wait_for_task(1).status == "cancelled"
    watched = weakref.ref(task)
    del task
    runner.initialize()
    gc.collect()
    assert watched() is None


def test_each_task_that_refuses_is_told_again_at_the_very_end(make_runner: MakeRunner) -> None:
    runner, door, told = make_runner(cancel_grace=0), Door(), []

    async def give_in_at_last() -> None:
        while True:
            try:
                await door.walk_through()
            except asyncio.CancelledError:
                told.append(True)
                if len(told) == 2:
                    raise

    runner.submit(give_in_at_last, task_id=1)
    door.wait_for()
    runner.destroy()
    assert told == [True, True]
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")


def test_one_that_takes_its_cancellation_back_is_told_no_more_often(make_runner: MakeRunner) -> None:
    runner, door, told = make_runner(cancel_grace=0), Door(), list[bool]()

    async def take_back() -> None:
        while True:
            try:
                await door.walk_through()
            except asyncio.CancelledError:
                told.append(True)
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

    runner.submit(take_back)
    door.wait_for()
    runner.destroy()
    assert told == [True, True], "at first, and at the very end"
    assert runner.stats().abandoned == 1


def test_a_task_that_cleans_up_has_the_whole_grace_before_it_is_told_again(make_runner: MakeRunner) -> None:
    grace_s = 0.3
    runner = make_runner(cancel_grace=grace_s)
    told: list[float] = []
    started = threading.Event()

    async def clean_up_slowly() -> None:
        started.set()
        while len(told) < 2:
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                told.append(time.monotonic())

    runner.submit(clean_up_slowly)
    assert started.wait(LONG_S)
    runner.destroy()
    assert told[1] - told[0] >= grace_s - 0.003  # a uvloop counts in milliseconds


def test_of_many_that_refuse_ten_are_named_and_all_are_counted(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    for task_id in range(12):
        runner.submit(door.insist, task_id=task_id)
    door.wait_for(12)
    runner.destroy()
    names = [f"{task_id} Door.insist" for task_id in range(10)]
    assert [line.message for line in log_lines] == [f"tasks_abandoned count=12 tasks={names}"]
    assert runner.stats().abandoned == 12


def test_children_that_refuse_are_named_beside_the_tasks(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()

    async def parent() -> None:
        kept.append(asyncio.create_task(door.insist(), name="stubborn child"))

    kept: list[asyncio.Task[Any]] = []
    runner.submit(parent)
    assert runner.wait(1, timeout=10) == [None]
    door.wait_for()
    runner.submit(door.insist, task_id=1)
    door.wait_for()
    runner.destroy()
    assert [line.message for line in log_lines] == [
        "tasks_abandoned count=2 tasks=['1 Door.insist', 'stubborn child']"
    ]


def test_one_that_was_abandoned_before_and_still_refuses_is_named_too(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    runner.submit(door.insist, task_id=1)
    door.wait_for()
    runner.cancel(1)
    assert runner.wait(1, timeout=10) == [None]
    turn_loop(runner)
    log_lines.clear()
    runner.destroy()
    assert [line.message for line in log_lines] == ["tasks_abandoned count=1 tasks=['1 Door.insist']"]
    assert runner.stats() == RunnerStats(submitted=1, collected=1, abandoned=1, state="stopped")


def test_one_that_was_abandoned_before_and_gives_in_is_not_named(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, told = make_runner(cancel_grace=0), Door(), list[bool]()

    async def give_in_at_last() -> None:
        while True:
            try:
                await door.walk_through()
            except asyncio.CancelledError:
                told.append(True)
                if len(told) == 2:
                    raise

    runner.submit(give_in_at_last, task_id=1)
    door.wait_for()
    runner.cancel(1)
    assert runner.wait(1, timeout=10) == [None]
    assert runner.stats().abandoned == 1
    turn_loop(runner)
    log_lines.clear()
    runner.destroy()
    assert log_lines == []
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="stopped")


def test_those_it_ended_are_counted_without_those_it_abandoned(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    """Also when one was told to end before, by cancel, and never did."""
    runner, door = make_runner(), Door()
    runner.submit(door.insist, task_id=1)
    runner.submit(door.insist, task_id=2)
    door.wait_for(2)
    runner.cancel(1)
    door.wait_for(1)
    for task_id in (3, 4, 5):
        runner.submit(door.walk_through, task_id=task_id)
    door.wait_for(3)
    runner.destroy(timeout=0.5)
    assert log_lines.of("info") == ["tasks_cancelled_by_destroy count=3"]
    assert log_lines.of("warning") == ["tasks_abandoned count=2 tasks=['1 Door.insist', '2 Door.insist']"]


def test_a_task_that_starts_a_new_one_each_time_it_ends_does_not_keep_it(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, door, kept = make_runner(cancel_grace=0), Door(), list[asyncio.Task[None]]()

    async def hydra() -> None:
        try:
            await door.walk_through()
        finally:
            kept.append(asyncio.get_running_loop().create_task(hydra()))

    runner.submit(hydra)
    door.wait_for()
    before = time.monotonic()
    runner.destroy()
    assert time.monotonic() - before < 5
    assert len(kept) == 4, "it is followed for four rounds"
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_the_patience_is_the_grace_and_at_most_half_of_the_timeout(make_runner: MakeRunner) -> None:
    for grace, timeout, at_least, at_most in ((0.4, 30.0, 0.35, 5.0), (60.0, 0.8, 0.3, 0.7)):
        runner, door = make_runner(cancel_grace=grace), Door()
        runner.submit(door.insist)
        door.wait_for()
        before = time.monotonic()
        runner.destroy(timeout=timeout)
        assert at_least <= time.monotonic() - before <= at_most
        assert runner.stats().abandoned == 1
