"""What destroy does with what lives on the loop: cleanup, async generators, the executor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from areal_core.async_task_runner import RunnerStats
from areal_core.loop_cleanup import register_loop_cleanup
from conftest import MakeRunner
from doors import (
    LONG_S,
    Door,
    running_loop,
)
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


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


def test_a_generator_that_refuses_is_given_up_and_closed_after_the_loop(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, kept, ended = make_runner(cancel_grace=0), list[AsyncIterator[int]](), list[str]()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            try:
                while True:
                    try:
                        await asyncio.get_running_loop().create_future()
                    except asyncio.CancelledError:
                        continue
            finally:
                ended.append("generator")

    async def start() -> asyncio.AbstractEventLoop:
        kept.append(generate())
        await anext(kept[0])
        return asyncio.get_running_loop()

    def close() -> None:
        kept.clear()
        gc.collect()
        ended.append("loop")
        really_close()

    loop = runner.run(start)
    really_close = loop.close
    loop.close = close  # type: ignore[method-assign]
    runner.destroy()
    assert ended == ["loop", "generator"]
    assert loop.is_closed()
    assert [line.message for line in log_lines] == ["shutdown_step_timed_out step=async generators"]
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_a_generator_that_a_task_left_behind_goes_through_still_cleans_up(make_runner: MakeRunner) -> None:
    runner, ended = make_runner(cancel_grace=0), list[str]()
    begun = threading.Event()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            begun.set()
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.get_running_loop().create_future()
        except GeneratorExit:  # not just anything that ends it
            ended.append("generator")
            raise

    async def go_through() -> None:
        try:
            async for _ in generate():
                pass
        finally:
            ended.append("task")

    runner.submit(go_through)
    assert begun.wait(LONG_S)
    runner.destroy()
    assert ended == ["generator", "task"]


def test_a_generator_that_nobody_can_close_is_kept_for_good(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, kept = make_runner(), list[Any]()

    @types.coroutine
    def stay() -> Iterator[None]:
        for _ in range(10):  # and not for ever: nothing could end what collects it
            with contextlib.suppress(BaseException):
                yield

    async def generate() -> AsyncIterator[int]:
        await stay()
        yield 1

    async def start() -> None:
        kept.append(generate())
        kept.append(kept[0].__anext__())
        kept[1].send(None)  # by hand: no task goes through it, and it is busy for ever

    runner.run(start)
    runner.destroy()
    (line,) = (record for record in caplog.records if record.name == "asyncio")
    assert "asynchronous generator is already running" in str(line.exc_info)
    gone = weakref.ref(kept[0])
    kept.clear()
    runner.initialize()  # a runner lets go of its last loop, which knows of it, with the next one
    gc.collect()  # if it went, it would be said that what it awaits ignored its end
    assert gone() is not None


def test_a_thread_of_the_executor_that_still_works_is_waited_for(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, kept, ended = make_runner(), list[asyncio.Future[None]](), list[str]()

    def work() -> None:
        threading.Event().wait(0.1)  # what its work takes
        ended.append("thread")

    async def start() -> None:
        kept.append(asyncio.get_running_loop().run_in_executor(None, work))

    runner.run(start)
    runner.destroy()
    assert ended == ["thread"]
    assert log_lines == []


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


def hide_from_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep it from holding what is logged from now on, and the coroutines that the tracebacks refer to."""
    monkeypatch.setattr(logging.getLogger("areal_core"), "propagate", False)


def test_each_step_that_fails_is_named(
    make_runner: MakeRunner, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_from_pytest(monkeypatch)
    runner, called = make_runner(), list[str]()

    async def start() -> threading.Thread:
        register_loop_cleanup(lambda: called.append("cleanup"))
        return await asyncio.to_thread(threading.current_thread)

    def fail(timeout: float) -> None:
        del loop.is_running
        raise OSError("broken")

    loop, thread = runner.run(running_loop), runner.run(start)
    loop.is_running = lambda: True  # type: ignore[method-assign]
    thread.join = fail  # type: ignore[method-assign, assignment]
    runner.destroy()
    del thread.join
    thread.join(LONG_S)
    assert [line.message.partition(" error=")[0] for line in log_lines] == [
        "shutdown_step_failed step=cancel tasks",
        "shutdown_step_failed step=loop cleanup",
        "shutdown_step_failed step=async generators",
        "shutdown_step_failed step=default executor",
    ]
    assert called == ["cleanup"], "it could run when the loop was closed"
    assert loop.is_closed()
    log_lines.clear()
    gc.collect()  # a coroutine that was never awaited fails the test


@pytest.mark.parametrize("fails", ["once", "always"])
def test_a_loop_that_fails_is_closed_and_leaves_no_coroutine_that_was_never_awaited(
    make_runner: MakeRunner,
    log_lines: LogLines,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    hide_from_pytest(monkeypatch)
    runner, kept, ended = make_runner(), list[AsyncIterator[int]](), list[str]()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def clean_up() -> None:
        ended.append("cleanup")

    async def start() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        really_run = loop.run_forever

        def fail() -> None:
            if fails == "once":
                loop.run_forever = really_run  # type: ignore[method-assign]
            raise OSError("broken")

        loop.run_forever = fail  # type: ignore[method-assign]
        register_loop_cleanup(clean_up)
        kept.append(generate())
        await anext(kept[0])
        return loop

    loop = runner.run(start)
    runner.destroy()
    assert loop.is_closed()
    name = f"{clean_up.__module__}.{clean_up.__qualname__}"
    failed = [
        "shutdown_step_failed step=cancel tasks error=OSError: broken",
        f"loop_cleanup_failed callback={name}",
        "shutdown_step_failed step=async generators error=OSError: broken",
    ]
    assert [line.message for line in log_lines] == (failed if fails == "always" else failed[:1])
    assert ended == ([] if fails == "always" else ["cleanup", "generator"])
    kept.clear()
    log_lines.clear()
    gc.collect()  # a coroutine that was never awaited fails the test
    assert caplog.records == []


def test_a_thread_of_the_executor_that_hangs_is_given_up_within_the_timeout(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, blocked, go_on = make_runner(), threading.Event(), threading.Event()
    threads, kept = list[threading.Thread](), list[asyncio.Future[None]]()
    more_than_there_are_threads = 40

    def hang() -> None:
        threads.append(threading.current_thread())
        blocked.set()
        go_on.wait(LONG_S)

    async def start() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        kept.extend(loop.run_in_executor(None, hang) for _ in range(more_than_there_are_threads))
        return loop

    loop = runner.run(start)
    assert blocked.wait(LONG_S)
    before = time.monotonic()
    runner.destroy(timeout=0.5)
    assert time.monotonic() - before < 0.5
    assert loop.is_closed()
    assert [line[:2] for line in log_lines] == [("warning", "shutdown_step_timed_out step=default executor")]
    go_on.set()
    for thread in set(threads):
        thread.join(LONG_S)
    assert len(threads) == len(set(threads)), "what was still in the queue is not done any more"
