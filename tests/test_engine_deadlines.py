"""One timer for the deadlines of all generations of a loop."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from areal_core._engine.deadlines import Deadlines
from areal_core._engine.events import Events
from areal_core._engine.limits import Limits
from areal_core._engine.opening import Opening
from areal_core.errors import GenerationTimeoutError
from scripted import Play
from threaded_loops import MakeLoop


async def until_late(deadlines: Deadlines, ended: list[str], name: str) -> None:
    with pytest.raises(GenerationTimeoutError, match=f"{name}$"), Limits(deadlines, lambda: name):
        await asyncio.Event().wait()
    ended.append(name)


def test_who_begins_first_is_over_first_and_each_has_all_its_time(play: Play) -> None:
    async def act() -> None:
        loop, ended = asyncio.get_running_loop(), list[str]()
        deadlines = Deadlines(0.2, Opening(Events()))
        began, tasks = loop.time(), []
        for name in ("first", "second", "third"):
            tasks.append(asyncio.create_task(until_late(deadlines, ended, name)))
            await asyncio.wait(tasks, timeout=0.05)
        await tasks[0]
        assert loop.time() - began >= 0.19
        await tasks[2]
        assert loop.time() - began >= 0.29
        assert ended == ["first", "second", "third"]

    play(act)


def test_those_that_are_over_at_once_all_end(play: Play) -> None:
    async def act() -> None:
        deadlines, ended = Deadlines(0.01, Opening(Events())), list[str]()
        names = [str(number) for number in range(100)]
        await asyncio.gather(*(until_late(deadlines, ended, name) for name in names))
        assert ended == names

    play(act)


def test_one_that_ends_early_leaves_the_others_their_time(play: Play) -> None:
    async def act() -> None:
        deadlines, ended = Deadlines(0.1, Opening(Events())), list[str]()
        with Limits(deadlines, str):
            late = asyncio.create_task(until_late(deadlines, ended, "late"))
            await asyncio.sleep(0)
        await late
        assert ended == ["late"]

    play(act)


def test_a_loop_does_not_keep_what_an_engine_had_on_it(play: Play) -> None:
    async def act() -> None:
        opening = Opening(Events())
        deadlines = Deadlines(3600.0, opening)
        for _ in range(3):
            with Limits(deadlines, str):
                await asyncio.sleep(0)
        left = weakref.ref(opening)
        del deadlines, opening
        gc.collect()
        assert left() is None

    play(act)


def test_an_engine_does_not_keep_the_loops_it_was_used_on(loop_factory: MakeLoop) -> None:
    deadlines = Deadlines(3600.0, Opening(Events()))

    async def act() -> weakref.ref[asyncio.AbstractEventLoop]:
        with Limits(deadlines, str):
            await asyncio.sleep(0)
        return weakref.ref(asyncio.get_running_loop())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.run(act())
    del runner
    gc.collect()
    assert loop() is None


def test_a_pause_that_outlasts_the_time_is_waited_for_by_one_for_all(play: Play) -> None:
    async def act() -> None:
        opening, ended = Opening(Events()), list[str]()
        deadlines = Deadlines(0.1, opening)
        tasks = [asyncio.create_task(until_late(deadlines, ended, name)) for name in ("one", "two")]
        await asyncio.sleep(0)
        opening.close()
        done, _ = await asyncio.wait(tasks, timeout=0.3)
        assert not done
        assert len(opening._wakes) == 1
        opening.open()
        await asyncio.gather(*tasks)
        assert ended == ["one", "two"]

    play(act)
