"""Pause: nothing starts, and what runs goes on and is delivered."""

from __future__ import annotations

import asyncio
import threading

import pytest

from conftest import MakeExecutor
from doors import Door, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Lists,
    Playing,
    TellingEngine,
    answering,
    counts,
    trajectory_of,
    values_of,
)


def test_paused_it_starts_nothing_and_delivers_what_runs(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for()
    executor.pause()
    assert executor.is_paused()
    executor.submit(2, answering)
    executor.submit(3, answering, is_eval=True)
    executor.submit(4, answering, group_size=2)
    door.open()
    assert values_of(executor.wait(1, WAIT_S)) == [1]
    turn_loop(executor.runner)
    assert counts(executor.ledger) == {"submitted": 3, "pending": 2, "collected": 1, "accepted": 1}
    assert counts(executor.eval_ledger) == {"submitted": 1, "pending": 1}
    executor.resume()
    assert not executor.is_paused()
    assert values_of(executor.wait(2, WAIT_S)) == [2, 4]
    assert len(executor.wait_outcomes(1, WAIT_S, is_eval=True)) == 1


def test_the_rest_of_a_group_waits_for_resume_too(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=1), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), group_size=2)
    door.wait_for()
    executor.pause()
    door.open()
    turn_loop(executor.runner)
    assert executor.ledger.running == 1
    executor.resume()
    (group,) = executor.wait(1, WAIT_S)
    assert group is not None
    assert group["input_ids"].shape == (2, 1)


def test_resume_starts_work_with_no_other_event(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    executor.pause()
    waiting = start_blocked(executor.wait, 1)
    executor.submit(1, answering)
    turn_loop(executor.runner)
    assert not waiting.is_done()
    executor.resume()
    assert values_of(waiting.result()) == [1]


def test_calls_on_the_loop_work_while_paused(make_executor: MakeExecutor) -> None:
    async def where(value: int) -> tuple[int, threading.Thread]:
        await asyncio.sleep(0)
        return value, threading.current_thread()

    executor = make_executor()
    executor.pause()
    thread = executor.runner.thread
    assert executor.run_everywhere(where, 7) == [(7, thread)]
    assert executor.runner.run(where, 8) == (8, thread)
    with pytest.raises(ZeroDivisionError):
        executor.run_everywhere(lambda: where(1 // 0))
    assert executor.is_paused()
    assert executor.ledger.submitted == 0
    assert executor.runner.stats().submitted == 0


def test_a_call_on_the_loop_is_cancelled_when_its_time_is_up(make_executor: MakeExecutor) -> None:
    ended = threading.Event()

    async def stays() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def has_its_own() -> None:
        raise TimeoutError("its own")

    executor = make_executor()
    with pytest.raises(TimeoutError, match=r"stays.* did not end within 0\.05 s"):
        executor.run_everywhere(stays, timeout=0.05)
    assert ended.is_set()
    with pytest.raises(TimeoutError, match="its own"):
        executor.run_everywhere(has_its_own, timeout=WAIT_S)
    with pytest.raises(ValueError, match="timeout=-1"):
        executor.run_everywhere(stays, timeout=-1)
    with pytest.raises(TypeError, match="None"):
        executor.run_everywhere(None)  # type: ignore[arg-type]


def test_a_batch_that_is_there_is_delivered_while_paused_and_the_next_after_resume(
    make_executor: MakeExecutor,
) -> None:
    engine = TellingEngine()
    executor, loader = make_executor(engine, consumer_batch_size=2, max_head_offpolicyness=1), Lists(2)
    executor.prepare_batch(loader, answering)
    turn_loop(executor.runner)
    executor.pause()
    assert values_of(executor.prepare_batch(loader, answering)) == [2, 3]
    engine.set_version(1)
    preparing = start_blocked(executor.prepare_batch, loader, answering)
    turn_loop(executor.runner)
    assert not preparing.is_done()
    executor.resume()
    assert values_of(preparing.result()) == [4, 5]


def test_a_cancel_works_while_paused(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    executor.pause()
    executor.submit(1, answering, task_id=1)
    assert executor.cancel(1)
    assert executor.wait_outcomes(1, WAIT_S)[0].status == "cancelled"


def test_the_runner_under_it_is_not_paused(make_executor: MakeExecutor) -> None:
    """Its own tasks are somebody else's."""
    executor = make_executor()
    executor.pause()
    executor.runner.submit(asyncio.sleep, 0, 5)
    assert executor.runner.wait(1, timeout=WAIT_S) == [5]
    assert not executor.runner.paused
