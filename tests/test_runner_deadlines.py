"""Deadlines: whose, from when, and what lifts them."""

from __future__ import annotations

import asyncio
import math
import time
from fractions import Fraction
from typing import Any

import pytest

from areal_core.async_task_runner import RunnerStats
from conftest import MakeRunner
from doors import Door, give, turn_loop
from logged import LogLines


def test_the_runners_default_holds_for_each_task(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, door = make_runner(task_timeout=0.02), Door()
    runner.submit(door.walk_through, task_id=1)
    runner.submit(give, "quick", task_id=2)
    results = {result.task_id: result for result in runner.wait(2, timeout=10, with_timing=True)}
    assert (results[1].status, str(results[1].error)) == (
        "timed_out",
        "task 1 exceeded its deadline of 0.02 s",
    )
    assert (results[2].status, results[2].data) == ("completed", "quick")
    turn_loop(runner)
    assert len(log_lines) == 1


def test_a_task_may_have_a_deadline_of_its_own_or_none(make_runner: MakeRunner) -> None:
    runner, door = make_runner(task_timeout=0.02), Door()
    for task_id, timeout in ((1, 0.001), (2, None), (3, 10.0), (4, math.inf)):
        runner.with_options(task_timeout=timeout, task_id=task_id).submit(door.walk_through)
    runner.submit(door.walk_through, task_id=5)
    runner.with_options(task_id=6).submit(door.walk_through)
    results = {result.task_id: result for result in runner.wait(3, timeout=10, with_timing=True)}
    assert {task_id: str(result.error) for task_id, result in results.items()} == {
        1: "task 1 exceeded its deadline of 0.001 s",
        5: "task 5 exceeded its deadline of 0.02 s",
        6: "task 6 exceeded its deadline of 0.02 s",
    }
    assert runner.stats().running == 3
    door.open()
    assert runner.wait(3, timeout=10) == [None] * 3
    assert {result.status for result in results.values()} == {"timed_out"}


def test_without_a_default_a_task_has_no_deadline(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "value")
    runner.with_options().submit(door.walk_through, "value")
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.05)
    door.open()
    assert runner.wait(2, timeout=10) == ["value", "value"]


def test_a_deadline_counts_from_the_start_not_from_the_submit(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.pause()
    runner.with_options(task_timeout=0.05).submit(give, "value")
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.1)
    assert runner.stats() == RunnerStats(submitted=1, pending=1, state="paused")
    runner.resume()
    assert runner.wait(1, timeout=10) == ["value"]


def test_pausing_does_not_stop_a_deadline(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.with_options(task_timeout=0.02).submit(door.walk_through)
    door.wait_for()
    runner.pause()
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    assert result.status == "timed_out"
    assert 0.017e9 <= result.finish_time - result.create_time < 5e9


def test_each_task_has_its_own_deadline(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    for task_id, timeout in ((1, 0.06), (2, 0.02), (3, 0.04)):
        runner.with_options(task_timeout=timeout, task_id=task_id).submit(door.walk_through)
    results = runner.wait(3, timeout=10, with_timing=True)
    assert [result.task_id for result in results] == [2, 3, 1]


def test_a_task_that_cleans_up_after_its_deadline_is_published_when_it_ends(make_runner: MakeRunner) -> None:
    runner, cleaning = make_runner(), Door()

    async def work() -> None:
        try:
            await Door().walk_through()
        finally:
            await cleaning.walk_through()

    runner.with_options(task_timeout=0.01, task_id=1).submit(work)
    cleaning.wait_for()
    turn_loop(runner)
    assert runner.stats() == RunnerStats(submitted=1, running=1, state="running")
    cleaning.open()
    assert runner.wait_for_task(1, timeout=10).status == "timed_out"
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="running")


def test_a_timeout_inside_the_task_is_its_own_failure(make_runner: MakeRunner) -> None:
    runner = make_runner(task_timeout=10.0)

    async def hurry() -> None:
        async with asyncio.timeout(0.001):
            await Door().walk_through()

    runner.submit(hurry)
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    assert (result.status, type(result.error)) == ("failed", TimeoutError)


def test_a_call_has_no_deadline(make_runner: MakeRunner) -> None:
    runner = make_runner(task_timeout=0.01)
    assert runner.run(asyncio.sleep, 0.05, "value") == "value"


@pytest.mark.any_loop
def test_a_timed_out_task_is_logged_once(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, door = make_runner(cancel_grace=0.01), Door()
    before = time.monotonic_ns()
    runner.with_options(task_timeout=0.01, task_id=7).submit(door.walk_through)
    result = runner.wait(1, timeout=10, with_timing=True)[0]
    with pytest.raises(TimeoutError):
        runner.wait(1, timeout=0.03)
    seconds = round((result.finish_time - result.create_time) / 1e9, 6)
    assert 0.007 <= seconds <= (time.monotonic_ns() - before) / 1e9
    said = "error=TimeoutError: task 7 exceeded its deadline of 0.01 s"
    assert [line[:2] for line in log_lines] == [
        ("warning", f"task_timed_out task=7 Door.walk_through seconds={seconds} {said}")
    ]


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, math.nan, -math.inf, Fraction(-1, 2)])
def test_a_deadline_has_to_be_above_zero(make_runner: MakeRunner, timeout: Any) -> None:
    with pytest.raises(ValueError, match="task_timeout=") as raised:
        make_runner().with_options(task_timeout=timeout)
    assert str(raised.value) == f"task_timeout={timeout!r} has to be above 0 seconds, or None"


@pytest.mark.any_loop
@pytest.mark.parametrize("timeout", [True, False, "1", 1j])
def test_a_deadline_has_to_be_a_number(make_runner: MakeRunner, timeout: Any) -> None:
    with pytest.raises(TypeError) as raised:
        make_runner().with_options(task_timeout=timeout)
    assert str(raised.value) == f"task_timeout has to be seconds or None, not {timeout!r}"


@pytest.mark.any_loop
def test_options_can_be_used_again(make_runner: MakeRunner) -> None:
    runner = make_runner()
    hasty = runner.with_options(task_timeout=0.005)
    patient = runner.with_options(task_timeout=10.0)
    assert [hasty.submit(Door().walk_through), patient.submit(give, 1), hasty.submit(give, 2)] == [
        2**48,
        2**48 + 1,
        2**48 + 2,
    ]
    statuses = {result.task_id: result.status for result in runner.wait(3, timeout=10, with_timing=True)}
    assert statuses == {2**48: "timed_out", 2**48 + 1: "completed", 2**48 + 2: "completed"}
