"""Bodies that something outside of them ends, with an error of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest

from areal_core._interruption import Interruption
from scripted import Play


class EndedError(Exception):
    """What a body is ended with."""


class Ended(Interruption):
    """One that says its name."""

    def __init__(self, name: str = "it") -> None:
        super().__init__()
        self._name = name

    def end(self) -> None:
        self._interrupt()

    def _error(self) -> Exception:
        return EndedError(self._name)


def soon(act: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_soon(act)


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


def test_a_body_that_is_ended_raises_its_error_and_the_task_goes_on(play: Play) -> None:
    async def act() -> None:
        one = Ended()
        soon(one.end)
        soon(one.end)
        with pytest.raises(EndedError, match="it") as raised, one:
            await asyncio.Event().wait()
        assert raised.value.__cause__ is None
        assert cancelling() == 0
        await asyncio.sleep(0)

    play(act)


def test_an_end_before_the_body_or_behind_it_does_nothing(play: Play) -> None:
    async def act() -> None:
        one = Ended()
        one.end()
        with one:
            await asyncio.sleep(0)
        one.end()
        await asyncio.sleep(0)
        assert cancelling() == 0

    play(act)


def test_what_a_body_raises_instead_is_kept(play: Play) -> None:
    async def act() -> None:
        async def instead() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("instead") from None

        one = Ended()
        soon(one.end)
        with pytest.raises(ValueError, match="instead"), one:
            await instead()
        assert cancelling() == 0

    play(act)


@pytest.mark.parametrize("others_first", [True, False])
def test_a_cancellation_by_others_stays_one(play: Play, others_first: bool) -> None:
    async def act() -> None:
        one = Ended()

        async def body() -> None:
            with one:
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        ends: list[Callable[[], object]] = [task.cancel, one.end] if others_first else [one.end, task.cancel]
        for end in ends:
            end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    play(act)


@pytest.mark.parametrize("order", ["outer first", "inner first", "inner"])
def test_of_two_around_each_other_the_one_that_was_ended_counts_and_the_outer_most(
    play: Play, order: str
) -> None:
    async def act() -> None:
        outer, inner = Ended("outer"), Ended("inner")
        ends = {"outer first": [outer, inner], "inner first": [inner, outer], "inner": [inner]}[order]
        for one in ends:
            soon(one.end)
        with pytest.raises(EndedError, match="inner" if order == "inner" else "outer"), outer, inner:
            await asyncio.Event().wait()
        assert cancelling() == 0

    play(act)


@pytest.mark.parametrize("outer", ["the timeout", "the other"])
def test_a_timeout_around_it_or_inside_it_is_told_from_it(play: Play, outer: str) -> None:
    async def act() -> None:
        one, late = Ended(), asyncio.timeout(None)

        async def body() -> None:
            if outer == "the timeout":
                async with late:
                    with one:
                        await asyncio.Event().wait()
            else:
                with one:
                    async with late:
                        await asyncio.Event().wait()

        loop = asyncio.get_running_loop()
        soon(lambda: late.reschedule(loop.time() - 1))
        soon(lambda: soon(one.end))  # in the turn in which that takes effect
        with pytest.raises(TimeoutError if outer == "the timeout" else EndedError):
            await body()
        assert cancelling() == 0
        one, late = Ended(), asyncio.timeout(None)
        soon(one.end)
        with pytest.raises(EndedError):
            await body()
        assert cancelling() == 0

    play(act)


def test_a_task_that_was_cancelled_before_it_can_still_be_ended(play: Play) -> None:
    async def act() -> None:
        async def body() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            assert cancelling() == 1
            one = Ended()
            soon(one.end)
            with pytest.raises(EndedError), one:
                await asyncio.Event().wait()
            assert cancelling() == 1

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        await task

    play(act)


def test_a_task_that_ends_with_it_is_not_left_to_the_garbage_collector(play: Play) -> None:
    async def act() -> None:
        async def body() -> None:
            with one:
                await asyncio.Event().wait()

        one = Ended()
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        one.end()
        await asyncio.wait((task,))
        assert isinstance(task.exception(), EndedError)
        left = weakref.ref(task)
        gc.disable()
        try:
            del task
            await asyncio.sleep(0)
            assert left() is None
        finally:
            gc.enable()

    play(act)
