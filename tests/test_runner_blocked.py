"""A task that blocks the loop's thread while the runner is destroyed."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Coroutine
from linecache import getline
from types import FrameType
from typing import Any

import pytest

from areal_core._runner import exit_hook, life
from areal_core._runner.gate import Gate
from areal_core._runner.ledger import Ledger
from areal_core.async_task_runner import RunnerStats
from areal_core.errors import RunnerStoppedError
from conftest import MakeRunner
from doors import (
    LONG_S,
    Blockade,
    Caller,
    Door,
    fail,
    give,
    in_thread,
    interrupt_when,
    outcomes,
    start_blocked,
    turn_loop,
    use_task_class,
)
from logged import LogLines


def test_a_blocked_thread_is_left_behind_with_its_stack_logged_and_every_outcome_published(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade, door = make_runner(leave=True), Blockade(), Door()
    runner.submit(give, "finished", task_id=1)
    turn_loop(runner)
    runner.submit(door.walk_through, task_id=2)
    door.wait_for()
    runner.submit(blockade.block, task_id=3)
    blockade.wait_until_entered()
    runner.submit(give, task_id=4)
    runner.cancel(2)
    waiter = start_blocked(runner.wait, 4)
    thread = runner.thread
    assert thread is not None
    assert runner._life is not None
    loop = runner._life.thread.loop
    before = time.monotonic()
    runner.destroy(timeout=0.1)
    assert 0.1 <= time.monotonic() - before < 1
    assert thread.is_alive()
    assert type(waiter.error()) is RunnerStoppedError
    assert runner.stats() == RunnerStats(submitted=4, finished=4, abandoned=2, state="stopped")
    results = {result.task_id: result for result in runner.as_completed()}
    assert {task_id: (result.status, result.data) for task_id, result in results.items()} == {
        1: ("completed", "finished"),
        2: ("cancelled", None),
        3: ("cancelled", None),
        4: ("cancelled", None),
    }
    for task_id in (2, 3):
        assert results[task_id].create_time < results[task_id].finish_time
    assert results[4].create_time == results[4].finish_time
    left, named = log_lines
    assert left.level == "error"
    assert left.message.startswith("loop_thread_left_behind reason=it did not stop in time stack=\n  File ")
    assert ", in block\n" in left.message
    assert named[:2] == (
        "warning",
        "tasks_abandoned count=2 tasks=['2 Door.walk_through', '3 Blockade.block']",
    )
    before = time.monotonic()
    runner.destroy()  # does not wait for it again
    assert time.monotonic() - before < 1
    assert len(log_lines) == 2
    blockade.lift()
    thread.join(LONG_S)
    assert loop.is_closed()
    assert runner.stats() == RunnerStats(submitted=4, collected=4, abandoned=0, state="stopped")
    assert len(log_lines) == 2


def test_a_runner_starts_again_beside_its_thread_left_behind_and_is_not_disturbed_by_it(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.submit(blockade.block, "old", task_id=1)
    blockade.wait_until_entered()
    runner.submit(give, "old", task_id=2)
    old = runner.thread
    assert old is not None
    runner.destroy(timeout=0.02)
    runner.initialize()
    assert runner.thread is not old
    assert runner.stats() == RunnerStats(submitted=2, discarded=2, state="running")
    runner.submit(give, "new", task_id=1)
    assert runner.wait(1, timeout=10) == ["new"]
    door = Door()
    runner.submit(door.walk_through, "new", task_id=2)
    door.wait_for()
    said = len(log_lines)
    blockade.lift()
    old.join(LONG_S)
    assert not runner.exiting.is_set()
    assert runner.stats() == RunnerStats(submitted=4, running=1, collected=1, discarded=2, state="running")
    door.open()
    assert runner.wait(1, timeout=10) == ["new"]
    assert len(log_lines) == said


def test_a_thread_given_up_where_a_pause_puts_tasks_back_puts_none_back(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, said = make_runner(leave=True), list[str]()

    def give_up(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is Ledger.put_back.__code__:
            sys.setprofile(None)
            in_thread(runner.destroy, timeout=0.02)
            said.extend(line.message.split()[0] for line in log_lines)

    async def pause() -> None:
        runner.pause()
        sys.setprofile(give_up)

    thread = runner.thread
    assert thread is not None
    runner.pause()
    runner.submit(pause, task_id=1)
    runner.submit(give, task_id=2)
    runner.resume()
    thread.join(LONG_S)
    assert said == ["loop_thread_left_behind", "tasks_abandoned"]
    assert [line.message.split()[0] for line in log_lines] == said
    assert outcomes(runner) == {1: ("completed", None), 2: ("cancelled", None)}
    assert runner.stats() == RunnerStats(submitted=2, collected=2, state="stopped")


def test_a_task_that_a_pause_put_back_and_that_blocks_at_its_second_start_is_abandoned(
    make_runner: MakeRunner,
) -> None:
    runner, blockade, door = make_runner(leave=True, cancel_grace=0.02), Blockade(), Door()

    async def pause() -> None:
        runner.pause()

    async def block_and_insist() -> None:
        await blockade.block()
        await door.insist()

    thread = runner.thread
    assert thread is not None
    runner.pause()
    runner.submit(pause, task_id=1)
    runner.submit(block_and_insist, task_id=2)
    runner.resume()
    runner.wait(1, timeout=10)
    turn_loop(runner)
    runner.resume()
    blockade.wait_until_entered()
    runner.destroy(timeout=0.02)
    assert runner.stats() == RunnerStats(submitted=2, finished=1, collected=1, abandoned=1, state="stopped")
    blockade.lift()
    thread.join(LONG_S)
    assert runner.stats().abandoned == 1


def test_a_thread_given_up_where_it_notes_an_outcome_does_not_change_what_was_published(
    make_runner: MakeRunner,
) -> None:
    """It has looked whether the task was given up, and stops just before it stores what that returned."""
    runner, blockade = make_runner(leave=True), Blockade()

    def stop_at_the_store(frame: FrameType, event: str, argument: Any) -> Any:
        if getline(frame.f_code.co_filename, frame.f_lineno).strip() == "job.data = data":
            sys.settrace(None)
            blockade.enter()
        return stop_at_the_store

    async def be_traced() -> str:
        player = sys._getframe().f_back
        assert player is not None
        player.f_trace = stop_at_the_store
        sys.settrace(lambda *_: None)
        return "value"

    runner.submit(be_traced, task_id=1)
    blockade.wait_until_entered()
    thread = runner.thread
    assert thread is not None
    runner.destroy(timeout=0.02)
    blockade.lift()
    thread.join(LONG_S)
    result = runner.wait_for_task(1)
    assert (result.status, result.data, type(result.error)) == ("cancelled", None, asyncio.CancelledError)
    assert runner.stats() == RunnerStats(submitted=1, collected=1, state="stopped")


def test_a_thread_that_comes_free_leaves_what_was_published_as_it_is(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(leave=True), Blockade()

    class SlowTask(asyncio.Task[Any]):
        def __init__(self, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
            blockade.enter()
            super().__init__(coroutine, **options)

    runner.run(use_task_class, SlowTask)
    runner.pause()
    for task_id in (1, 2):
        runner.submit(give, task_id=task_id)
    runner.resume()
    blockade.wait_until_entered()
    runner.destroy(timeout=0.02)
    left = time.monotonic_ns()
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    for result in runner.wait(2, with_timing=True):
        assert (result.status, result.finish_time < left) == ("cancelled", True)


def test_what_ended_in_the_turn_that_blocks_the_thread_keeps_its_outcome(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.pause()
    runner.submit(give, "value", task_id=1)
    runner.submit(fail, ValueError("why"), task_id=2)
    runner.submit(blockade.block, task_id=3)
    runner.resume()
    blockade.wait_until_entered()
    runner.destroy(timeout=0.02)
    assert runner.stats() == RunnerStats(submitted=3, finished=3, abandoned=1, state="stopped")
    assert log_lines.of("warning") == ["tasks_abandoned count=1 tasks=['3 Blockade.block']"]
    assert outcomes(runner) == {1: ("completed", "value"), 2: ("failed", None), 3: ("cancelled", None)}
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    assert [line.message.split()[0] for line in log_lines].count("task_failed") == 1


def test_what_ends_in_the_turn_in_which_the_loop_stops_keeps_its_outcome(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()

    async def end_one_turn_later() -> str:
        await asyncio.sleep(0)
        return "value"

    runner.pause()
    runner.submit(blockade.block, "blocker", task_id=1)
    runner.submit(end_one_turn_later, task_id=2)
    runner.resume()
    blockade.wait_until_entered()
    ender = start_blocked(runner.destroy)  # the loop stops in the very next turn
    blockade.lift()
    ender.result()
    assert outcomes(runner) == {1: ("completed", "blocker"), 2: ("completed", "value")}


def test_a_blocked_thread_is_left_behind_once_by_all_who_wait_for_it(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.submit(blockade.block, task_id=1)
    blockade.wait_until_entered()
    for caller in [Caller(runner.destroy, 0.05) for _ in range(4)]:
        caller.result()
    assert runner.stats().finished == 1
    assert [line.message.split()[0] for line in log_lines] == ["loop_thread_left_behind", "tasks_abandoned"]
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    assert runner._life not in exit_hook._live


@pytest.mark.any_loop
def test_a_destroy_that_a_ctrl_c_ended_is_not_taken_for_one_that_still_waits(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.submit(blockade.block, task_id=1)
    blockade.wait_until_entered()
    with pytest.raises(KeyboardInterrupt), interrupt_when(Gate.wait, "call"):
        runner.destroy(timeout=LONG_S)
    assert runner.stats().finished == 0
    runner.destroy(timeout=0.02)
    assert runner.stats() == RunnerStats(submitted=1, finished=1, abandoned=1, state="stopped")
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)


@pytest.mark.any_loop
def test_where_no_more_thread_can_be_started_a_blocked_one_is_left_behind_all_the_same(
    make_runner: MakeRunner,
) -> None:
    runner, blockade = make_runner(leave=True), Blockade()
    runner.submit(blockade.block, task_id=1)
    blockade.wait_until_entered()
    threading.stack_size(2**46)  # no machine has that
    try:
        runner.destroy(timeout=0.02)
    finally:
        threading.stack_size(0)
    assert runner.stats() == RunnerStats(submitted=1, finished=1, abandoned=1, state="stopped")
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)


class BlockingHandler(logging.Handler):
    """A log handler that hangs, its lock held, which all who log have to take."""

    def __init__(self) -> None:
        super().__init__()
        self.blockade = Blockade()

    def emit(self, record: logging.LogRecord) -> None:
        self.blockade.enter()


@pytest.mark.any_loop
def test_a_thread_blocked_in_a_log_handler_does_not_hold_up_who_destroys(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left behind in another thread, which needs that handler's lock."""
    monkeypatch.setattr(life, "_GIVE_UP_S", 0.05)  # instead of five
    logger, handler = logging.getLogger("areal_core.blocked"), BlockingHandler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        runner = make_runner(logger=logger, leave=True)
        runner.submit(fail, ValueError("why"))
        handler.blockade.wait_until_entered()
        before = time.monotonic()
        runner.destroy(timeout=0.02)
        assert time.monotonic() - before < 2
        handler.blockade.lift()
        assert runner.thread is not None
        runner.thread.join(LONG_S)
        assert not runner.thread.is_alive()
        exit_hook.join_aside(time.monotonic() + LONG_S)  # it logs, and the next test may look
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


@pytest.mark.any_loop
def test_a_thread_that_goes_on_in_time_ends_in_order(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, blockade, door = make_runner(), Blockade(), Door()
    runner.submit(door.walk_through, task_id=1)
    door.wait_for()
    runner.submit(blockade.block, "value", task_id=2)
    blockade.wait_until_entered()
    ran: list[bool] = []

    async def run() -> None:
        ran.append(True)

    runner.submit(run, task_id=3)  # the loop has been asked to start it, before it is asked to stop
    ender = start_blocked(runner.destroy)
    assert runner.exiting.is_set()
    blockade.lift()
    ender.result()
    assert ran == []
    never = runner.wait_for_task(3)
    assert (never.status, never.create_time) == ("cancelled", never.finish_time)
    assert outcomes(runner) == {1: ("cancelled", None), 2: ("completed", "value")}
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=2"]
