"""Whose context variables a task sees, and who sees what it sets."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import weakref
from typing import Any

import pytest

from conftest import MakeRunner
from doors import give, in_thread, turn_loop, use_task_class

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


def test_each_task_runs_in_its_own_copy_of_its_submitters_context(make_runner: MakeRunner) -> None:
    runner, seen = make_runner(), list[tuple[str, str]]()

    async def paint(name: str) -> str:
        before = color.get()
        color.set(f"{name}'s own")
        await asyncio.sleep(0)
        seen.append((before, color.get()))
        return before

    def submit() -> str:
        color.set("red")
        runner.submit(paint, "first")
        color.set("blue")
        runner.submit(paint, "second")
        runner.submit(paint, "third")
        return color.get()

    runner.pause()  # so that all are started together
    mine = contextvars.copy_context()
    assert mine.run(submit) == "blue"
    in_thread(runner.submit, paint, "fourth")
    runner.resume()
    assert runner.wait(4, timeout=10) == ["red", "blue", "blue", "none"]
    assert [own for _, own in seen] == ["first's own", "second's own", "third's own", "fourth's own"]
    assert mine[color] == "blue"
    assert color.get() == "none"


@pytest.mark.any_loop
@pytest.mark.parametrize("task_class", [None, asyncio.Task], ids=["our start", "a task factory"])
def test_the_context_is_that_of_the_submit_not_of_the_start(make_runner: MakeRunner, task_class: Any) -> None:
    runner = make_runner()
    runner.run(use_task_class, task_class)

    async def look() -> str:
        return color.get()

    def submit() -> None:
        color.set("at submit")
        runner.submit(look)
        runner.with_options(task_timeout=10.0).submit(look)
        color.set("later")

    runner.pause()
    contextvars.copy_context().run(submit)
    runner.resume()
    assert runner.wait(2, timeout=10) == ["at submit", "at submit"]


@pytest.mark.any_loop
def test_what_a_task_sets_reaches_neither_later_tasks_nor_what_the_loop_runs(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def stain() -> None:
        color.set("stained")

    async def look() -> str:
        return color.get()

    runner.submit(stain)
    runner.run(stain)
    runner.submit(look)
    assert runner.wait(2, timeout=10) == [None, "none"]
    assert runner.run(look) == "none"


@pytest.mark.any_loop
def test_what_the_runner_starts_for_a_task_does_not_inherit_another_tasks_context(
    make_runner: MakeRunner,
) -> None:
    """A task whose submit comes from inside another task has that one's context, and only that."""
    runner = make_runner()

    async def look() -> str:
        return color.get()

    async def parent() -> None:
        color.set("parent")
        runner.submit(look)

    runner.submit(parent)
    runner.submit(look)
    assert sorted(map(str, runner.wait(3, timeout=10))) == ["None", "none", "parent"]


class LookingHandler(logging.Handler):
    """Note the color in whose context each line is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(color.get())


def test_what_the_library_does_for_a_task_runs_in_no_tasks_context(make_runner: MakeRunner) -> None:
    runner, logger, handler = make_runner(), logging.getLogger("areal_core"), LookingHandler()

    async def stain_and_fail() -> None:
        color.set("stained")
        raise ValueError

    def stain_and_cancel() -> None:
        color.set("stained")
        runner.submit(give, task_id=1)
        runner.cancel(1)

    logger.addHandler(handler)
    try:
        runner.submit(stain_and_fail)
        runner.wait(1, timeout=10)
        runner.pause()
        contextvars.copy_context().run(stain_and_cancel)
        turn_loop(runner)
    finally:
        logger.removeHandler(handler)
    assert handler.seen == ["none", "none"]


class Thing:
    """What a context may hold."""


thing = contextvars.ContextVar[Thing]("thing")


def test_a_deadline_far_off_keeps_no_ended_tasks_context(make_runner: MakeRunner) -> None:
    runner = make_runner()
    # A loop drops timers that were cancelled when nothing is due before them.
    runner.with_options(task_timeout=1800.0).submit(asyncio.sleep, 60)
    held = Thing()
    gone = weakref.ref(held)
    context = contextvars.copy_context()
    context.run(thing.set, held)
    context.run(runner.with_options(task_timeout=3600.0).submit, give, 1)
    assert runner.wait(1, timeout=10) == [1]
    turn_loop(runner)
    del context, held
    gc.collect()
    assert gone() is None
