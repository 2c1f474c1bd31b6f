"""What is left on the loop when it is closed is closed too, and says nothing, whenever it is collected."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from areal_core.loop_cleanup import register_loop_cleanup
from conftest import MakeRunner
from doors import Door, turn_loop, use_task_class
from logged import LogLines

Numbers = AsyncGenerator[int, None]


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what asyncio has logged since the last call, collecting all garbage first."""
    gc.collect()
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    caplog.clear()
    return said


# -- tasks that nobody refers to --------------------------------------------------------------------


def collect_after_each_run(loop: asyncio.AbstractEventLoop) -> None:
    really_run = loop.run_forever

    def run() -> None:
        really_run()
        gc.collect()

    loop.run_forever = run  # type: ignore[method-assign]


async def hang() -> None:
    """Swallow every cancellation, waiting for what nobody else refers to."""
    while True:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("begun", ["before the end", "at the end"])
def test_a_child_that_refuses_and_that_nobody_refers_to_may_be_collected_at_any_time(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture, begun: str
) -> None:
    runner, door, kept = make_runner(cancel_grace=0), Door(), list[asyncio.Task[None]]()

    async def parent() -> None:
        loop = asyncio.get_running_loop()
        collect_after_each_run(loop)
        if begun == "before the end":
            kept.append(loop.create_task(hang(), name="child"))
        try:
            await door.walk_through()
        finally:
            kept.append(loop.create_task(hang(), name="child"))
            await asyncio.sleep(0)
            loop.call_later(0.01, kept.clear)  # it has been told by then, and is let go in the same round

    runner.submit(parent)
    door.wait_for()
    runner.destroy()
    assert kept == []
    assert complaints(caplog) == []
    children = ["child"] * (2 if begun == "before the end" else 1)
    assert log_lines.of("warning") == [f"tasks_abandoned count={len(children)} tasks={children}"]
    runner.initialize()
    assert complaints(caplog) == []


def test_a_task_that_loop_cleanup_began_and_nobody_refers_to_may_be_collected_before_the_loop_is_closed(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner, begun = make_runner(), list[asyncio.Task[None]]()

    async def clean_up() -> None:
        begun.append(asyncio.get_running_loop().create_task(hang()))
        await asyncio.sleep(0)

    async def register() -> None:
        loop = asyncio.get_running_loop()
        register_loop_cleanup(clean_up)
        really_close = loop.close

        def close() -> None:
            begun.clear()
            gc.collect()
            really_close()

        loop.close = close  # type: ignore[method-assign]

    runner.run(register)
    runner.destroy()
    assert complaints(caplog) == []


@types.coroutine
def refuse_in_the_old_way(loop: asyncio.AbstractEventLoop) -> Generator[Any, Any, None]:
    while True:
        try:
            yield from loop.create_future()
        except BaseException:
            continue


def test_a_coroutine_of_the_old_kind_that_refuses_to_be_closed_says_nothing(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_runner(cancel_grace=0)

    async def work() -> None:
        await refuse_in_the_old_way(asyncio.get_running_loop())

    runner.submit(work)
    turn_loop(runner)
    runner.destroy()
    runner.initialize()
    assert complaints(caplog) == []


# -- async generators -------------------------------------------------------------------------------


async def yield_again() -> Numbers:
    """Ignore that it is closed."""
    while True:
        try:
            yield 1
        except GeneratorExit:
            continue


async def clean_up_for_ever(refused: type[BaseException], closed: list[str]) -> Numbers:
    """Hang in its finally clause, and go on when *refused* is raised there."""
    loop = asyncio.get_running_loop()
    try:
        yield 1
    finally:
        try:
            while True:
                try:
                    await loop.create_future()
                except refused:
                    continue
        finally:
            closed.append("generator")


COULD_NOT_CLOSE = "an error occurred during closing of asynchronous generator"


def test_one_that_ignores_being_closed_is_told_of_once_and_says_nothing_when_it_is_collected(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, kept = make_runner(), list[Numbers]()

    async def start() -> None:
        kept.append(yield_again())
        await anext(kept[0])

    runner.run(start)
    runner.destroy()
    [said] = complaints(caplog)
    assert said.startswith(COULD_NOT_CLOSE)
    kept.clear()
    assert complaints(caplog) == []
    assert log_lines == []


def test_a_handler_that_somebody_set_is_told_of_it_and_of_nothing_else(make_runner: MakeRunner) -> None:
    runner, kept, told = make_runner(), list[Numbers](), list[tuple[Any, dict[str, Any]]]()

    async def start() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *args: told.append(args))
        kept.append(yield_again())
        await anext(kept[0])
        return loop

    loop = runner.run(start)
    runner.destroy()
    [(complaining, context)] = told
    assert complaining is loop
    assert context["asyncgen"] is kept[0]


def test_one_that_refuses_to_end_its_cleanup_says_nothing_when_it_is_collected(
    make_runner: MakeRunner, log_lines: LogLines, caplog: pytest.LogCaptureFixture
) -> None:
    runner, kept = make_runner(cancel_grace=0), list[Numbers]()

    async def start() -> None:
        loop = asyncio.get_running_loop()
        kept.append(clean_up_for_ever(BaseException, []))
        await anext(kept[0])
        really_shut_down = loop.shutdown_asyncgens

        def shut_down() -> Coroutine[Any, Any, None]:
            loop.call_soon(loop.call_soon, kept.clear)  # one turn after the coroutine has begun
            return really_shut_down()

        loop.shutdown_asyncgens = shut_down  # type: ignore[method-assign]
        collect_after_each_run(loop)

    runner.run(start)
    runner.destroy()
    assert kept == []
    assert complaints(caplog) == []
    assert [line.message for line in log_lines] == ["shutdown_step_timed_out step=async generators"]


async def through_another(generator: Numbers) -> Numbers:
    async for value in generator:
        yield value


@types.coroutine
def in_a_coroutine_of_the_old_kind(generator: Numbers) -> Generator[Any, Any, int]:
    return (yield from anext(generator).__await__())


WAYS: dict[str, Callable[[Numbers], Awaitable[Any]]] = {
    "anext": anext,
    "anext with a default": lambda generator: anext(generator, 0),
    "asend": lambda generator: generator.asend(None),
    "athrow": lambda generator: generator.athrow(ValueError()),
    "aclose": lambda generator: generator.aclose(),
    "in a coroutine of the old kind": in_a_coroutine_of_the_old_kind,
    "through another": lambda generator: anext(through_another(generator)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refused", [asyncio.CancelledError, BaseException])
def test_one_that_a_task_waits_in_is_closed_and_kept_only_if_it_refuses_that(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture, way: str, refused: type[BaseException]
) -> None:
    runner, closed, watched = make_runner(cancel_grace=0), list[str](), list[weakref.ref[Numbers]]()

    async def work() -> None:
        generator = clean_up_for_ever(refused, closed)
        watched.append(weakref.ref(generator))
        await anext(generator)
        await WAYS[way](generator)

    runner.submit(work)
    turn_loop(runner)
    runner.destroy()
    runner.initialize()
    assert all(said.startswith(COULD_NOT_CLOSE) for said in complaints(caplog))
    refuses = refused is BaseException
    assert closed == ([] if refuses else ["generator"])
    assert (watched[0]() is not None) == refuses
    assert complaints(caplog) == []


def test_they_are_closed_whatever_task_factory_was_set(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner, kept, closed = make_runner(), list[Numbers](), list[str]()

    async def generate() -> Numbers:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append("generator")

    async def start() -> None:
        kept.append(generate())
        await anext(kept[0])

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("no task")

    runner.run(start)
    runner.run(use_task_class, refuse)
    runner.destroy()
    assert closed == ["generator"]
    assert log_lines == []
