"""destroy: what it ends, in which order, within which time, and what it leaves."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from areal_core._runner import exit_hook
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerStoppedError
from areal_core.loop_cleanup import register_loop_cleanup
from conftest import MakeRunner
from doors import LONG_S, Blockade, Caller, Door, fail, give, start_blocked, turn_loop
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def outcomes(runner: AsyncTaskRunner[Any]) -> dict[int, tuple[str, Any]]:
    return {result.task_id: (result.status, result.data) for result in runner.as_completed(timeout=10)}


async def work(door: Door, cleaning: Door, done: list[str]) -> str:
    """Wait at *door*; told to end, clean up at *cleaning*."""
    try:
        await door.walk_through()
    finally:
        await cleaning.walk_through()
        done.append("cleaned")
    return "value"


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


# -- what lives on the loop -------------------------------------------------------------------------


def test_tasks_end_first_then_loop_cleanup_then_generators_then_the_executor_then_the_loop(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, order = make_runner(), Door(), list[str]()
    kept, kept_future = list[AsyncIterator[int]](), list[asyncio.Future[None]]()
    executor_blocks, executor_works = threading.Event(), threading.Event()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            order.append("generator")
            executor_blocks.set()

    def in_executor() -> None:
        executor_works.set()
        assert executor_blocks.wait(LONG_S)
        order.append("executor")

    async def work() -> None:
        loop = asyncio.get_running_loop()
        really_close = loop.close

        def close() -> None:
            order.append("loop")
            really_close()

        loop.close = close  # type: ignore[method-assign]
        register_loop_cleanup(lambda: order.append("cleanup"))
        kept.append(generate())
        assert await anext(kept[0]) == 1
        kept_future.append(loop.run_in_executor(None, in_executor))
        try:
            await door.walk_through()
        finally:
            order.append("task")

    runner.submit(work)
    door.wait_for()
    assert executor_works.wait(LONG_S)
    runner.destroy()
    assert order == ["task", "cleanup", "generator", "executor", "loop"]
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]


def test_the_executor_works_until_cleanup_is_done_and_leaves_no_thread(make_runner: MakeRunner) -> None:
    runner, said = make_runner(), list[str]()

    async def use_thread() -> None:
        async def clean_up() -> None:
            said.append(await asyncio.to_thread(lambda: threading.current_thread().name))

        register_loop_cleanup(clean_up)
        said.append(await asyncio.to_thread(lambda: threading.current_thread().name))

    runner.run(use_thread)
    runner.destroy()
    assert [name.partition("_")[0] for name in said] == ["areal-core", "areal-core"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("areal-core_")]


def test_a_cleanup_that_fails_or_hangs_keeps_nothing_from_ending(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, called = make_runner(), []

    def fail() -> None:
        called.append("fails")
        raise KeyboardInterrupt

    async def hang() -> None:
        called.append("hangs")
        await Door().walk_through()

    async def register() -> asyncio.AbstractEventLoop:
        register_loop_cleanup(lambda: called.append("last"))
        register_loop_cleanup(fail)
        register_loop_cleanup(hang, timeout=0.02)
        return asyncio.get_running_loop()

    loop = runner.run(register)
    runner.destroy()
    assert called == ["hangs", "fails", "last"]
    assert loop.is_closed()
    assert [line.message.split()[0] for line in log_lines] == [
        "loop_cleanup_timed_out",
        "loop_cleanup_failed",
    ]


def test_a_cleanup_without_a_limit_of_its_own_is_bounded_by_destroys_timeout(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def register() -> asyncio.AbstractEventLoop:
        register_loop_cleanup(Door().walk_through, timeout=1e6)
        return asyncio.get_running_loop()

    loop = runner.run(register)
    before = time.monotonic()
    runner.destroy(timeout=0.4)
    assert time.monotonic() - before < 2
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    assert loop.is_closed()


def test_a_generator_that_hangs_is_given_up_within_the_timeout(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, kept, told = make_runner(), list[AsyncIterator[int]](), list[str]()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                await Door().walk_through()
            except asyncio.CancelledError:
                told.append("cancelled")
                raise

    async def start() -> asyncio.AbstractEventLoop:
        kept.append(generate())
        await anext(kept[0])
        return asyncio.get_running_loop()

    loop = runner.run(start)
    before = time.monotonic()
    runner.destroy(timeout=0.4)
    assert time.monotonic() - before < 0.4
    assert loop.is_closed()
    assert [line[:2] for line in log_lines] == [("warning", "shutdown_step_timed_out step=async generators")]
    assert told == ["cancelled"]
    kept.clear()
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_step_that_fails_is_logged_and_keeps_no_other_from_running(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, error, called = make_runner(), OSError("broken"), list[str]()

    async def shut_down() -> None:
        called.append("generators")
        raise error

    def close() -> None:
        called.append("close")
        really_close()
        raise error

    loop = runner.run(running_loop)
    really_close = loop.close
    loop.shutdown_asyncgens = shut_down  # type: ignore[method-assign]
    loop.close = close  # type: ignore[method-assign]
    runner.destroy()
    assert called == ["generators", "close"]
    assert loop.is_closed()
    assert [tuple(line) for line in log_lines] == [
        ("error", "shutdown_step_failed step=async generators error=OSError: broken", error),
        ("error", "shutdown_step_failed step=loop close error=OSError: broken", error),
    ]
    assert runner.stats() == RunnerStats(state="stopped")


def test_a_thread_of_the_executor_that_hangs_is_given_up_within_the_timeout(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blocked, go_on = make_runner(), threading.Event(), threading.Event()
    threads, kept = list[threading.Thread](), list[asyncio.Future[None]]()

    def hang() -> None:
        threads.append(threading.current_thread())
        blocked.set()
        go_on.wait(LONG_S)

    async def start() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        kept.append(loop.run_in_executor(None, hang))
        return loop

    loop = runner.run(start)
    assert blocked.wait(LONG_S)
    before = time.monotonic()
    runner.destroy(timeout=0.5)
    assert time.monotonic() - before < 0.5
    assert loop.is_closed()
    assert [line[:2] for line in log_lines] == [("warning", "shutdown_step_timed_out step=default executor")]
    go_on.set()
    threads[0].join(LONG_S)


# -- tasks that refuse ------------------------------------------------------------------------------


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


# -- a thread that is blocked -----------------------------------------------------------------------


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
