"""arun: a call from another loop, or from the runner's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import MakeRunner
from doors import (
    LONG_S,
    Door,
    fail,
    give,
    start_blocked,
    turn_loop,
)
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def test_arun_from_another_loop_runs_on_the_runners(
    make_runner: MakeRunner, loop_factory: LoopFactory
) -> None:
    runner = make_runner()

    async def where(a: int, *, b: int) -> tuple[int, int, threading.Thread]:
        await asyncio.sleep(0)
        return a, b, threading.current_thread()

    async def main() -> None:
        assert await runner.arun(where, 1, b=2) == (1, 2, runner.thread)
        values = await asyncio.gather(*(runner.arun(give, number) for number in range(50)))
        assert values == list(range(50))
        error = SystemExit(3)
        with pytest.raises(SystemExit) as raised:
            await runner.arun(fail, error)
        assert raised.value is error
        with pytest.raises(ValueError, match="why"):
            await runner.arun(fail, ValueError("why"))

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        mine.run(main())


def test_arun_does_not_block_the_callers_loop(make_runner: MakeRunner, loop_factory: LoopFactory) -> None:
    runner, door = make_runner(), Door()

    async def main() -> str:
        call = asyncio.create_task(runner.arun(door.walk_through, "value"))
        await asyncio.sleep(0)
        door.wait_for()  # on the runner's loop it is there, although this loop stands still
        assert not call.done()
        door.open()
        return str(await call)

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        assert mine.run(main()) == "value"


def test_arun_on_the_runners_own_loop_awaits_directly(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def task_of() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    async def nested() -> bool:
        with pytest.raises(ValueError, match="why"):
            await runner.arun(fail, ValueError("why"))
        with pytest.raises(TypeError, match=r"^expected an async function"):
            await runner.arun(5)  # type: ignore[arg-type]
        assert await runner.arun(give, 1) == 1
        return await runner.arun(task_of) is asyncio.current_task()

    runner.submit(nested)
    assert runner.wait(1, timeout=10) == [True]


def test_a_cancelled_arun_cancels_the_coroutine(make_runner: MakeRunner, loop_factory: LoopFactory) -> None:
    runner, door, cancelled = make_runner(), Door(), threading.Event()

    async def work() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def main() -> None:
        call = asyncio.create_task(runner.arun(work))
        await asyncio.sleep(0)
        door.wait_for()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        mine.run(main())
    assert cancelled.wait(LONG_S)
    assert runner.run(give, 1) == 1


@pytest.mark.parametrize("bad_end", [False, True])
def test_what_a_coroutine_raises_after_its_caller_has_gone_is_logged(
    make_runner: MakeRunner, loop_factory: LoopFactory, log_lines: LogLines, bad_end: bool
) -> None:
    runner, door, ended = make_runner(), Door(), threading.Event()

    async def work() -> None:
        try:
            await door.walk_through()
        except asyncio.CancelledError:
            if bad_end:
                raise ValueError("the connection broke") from None
            raise
        finally:
            asyncio.get_running_loop().call_later(0, ended.set)  # when its end has been published

    async def main() -> None:
        call = asyncio.create_task(runner.arun(work))
        await asyncio.sleep(0)
        door.wait_for()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        mine.run(main())
    if bad_end:
        line = log_lines.wait_for("task_failed")
        assert line.level == "error"
        assert isinstance(line.error, ValueError)
        assert "the connection broke" in line.message
    assert ended.wait(LONG_S)
    runner.run(give, 1)
    assert bool(log_lines.of("error")) == bad_end


def test_a_call_whose_callers_loop_is_closed_harms_nobody(
    make_runner: MakeRunner, loop_factory: LoopFactory, log_lines: LogLines
) -> None:
    runner, door = make_runner(), Door()

    async def main() -> None:
        call = asyncio.create_task(runner.arun(door.insist))
        await asyncio.sleep(0)
        door.wait_for()
        call.cancel()

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        mine.run(main())
    door.open()
    turn_loop(runner)
    assert runner.run(give, 1) == 1
    assert log_lines == []
    assert not runner.exiting.is_set()


def test_a_caller_whose_loop_was_closed_under_it_keeps_no_other_from_going_on(
    make_runner: MakeRunner, loop_factory: LoopFactory
) -> None:
    runner, door, loop = make_runner(), Door(), loop_factory()
    lost = loop.create_task(runner.arun(door.walk_through))
    loop.run_until_complete(asyncio.sleep(0))
    door.wait_for()
    loop.close()
    lost._log_destroy_pending = False  # type: ignore[attr-defined]
    caller = start_blocked(runner.run, door.walk_through, "value")
    door.wait_for()
    door.open()  # both end in one turn of the runner's loop
    assert caller.result() == "value"


def test_a_call_that_ends_after_its_callers_cancellation_arrives_nowhere(
    make_runner: MakeRunner, loop_factory: LoopFactory, log_lines: LogLines
) -> None:
    """The caller's loop still runs when the coroutine, which ignored its cancellation, ends."""
    runner, door = make_runner(), Door()

    async def main() -> str:
        call = asyncio.create_task(runner.arun(door.insist))
        await asyncio.sleep(0)
        door.wait_for()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        door.open()
        return str(await runner.arun(give, "next"))

    with asyncio.Runner(loop_factory=loop_factory) as mine:
        assert mine.run(main()) == "next"
    assert log_lines == []
