"""Whether generation is open, as tasks on any loop see it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from functools import partial

import pytest

from areal_core._engine.events import Events
from areal_core._engine.opening import Opening
from logged import LogLines
from threaded_loops import MakeLoop, ThreadedLoop, threaded_loops


@pytest.fixture
def opening() -> Opening:
    return Opening(Events())


def test_it_is_open_at_first_and_nobody_waits(loop_factory: MakeLoop, opening: Opening) -> None:
    assert opening.is_open
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(opening.wait())
    assert (opening.closings, opening.closed_s) == (0, 0.0)


def test_who_waits_on_any_loop_goes_on_when_it_opens(loop_factory: MakeLoop, opening: Opening) -> None:
    opening.close()
    with threaded_loops(loop_factory, 3) as loops:
        waiting = [loop.begin(opening.wait()) for loop in loops for _ in range(10)]
        for loop in loops:
            loop.settle()
        assert not any(one.done() for one in waiting)
        opening.open()
        for one in waiting:
            one.result(10)


def test_who_was_woken_and_finds_it_closed_again_waits_on(loop_factory: MakeLoop, opening: Opening) -> None:
    async def main() -> None:
        opening.close()
        waiting = asyncio.create_task(opening.wait())
        await asyncio.sleep(0)
        opening.open()
        opening.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        opening.open()
        async with asyncio.timeout(10):
            await waiting

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_who_is_cancelled_leaves_nothing_behind(loop_factory: MakeLoop, opening: Opening) -> None:
    async def main() -> None:
        opening.close()
        waiting = asyncio.create_task(opening.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not opening._wakes
        opening.open()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_to_close_and_open_twice_is_to_do_it_once(opening: Opening) -> None:
    seen = []
    for act in (opening.close, opening.close, opening.open, opening.open, opening.close):
        act()
        seen.append((opening.is_open, opening.closings))
    assert seen == [(False, 1), (False, 1), (True, 1), (True, 1), (False, 2)]


def test_the_time_spent_closed_adds_up(opening: Opening) -> None:
    began = time.monotonic()
    opening.close()
    while opening.closed_s < 0.02:
        pass
    opening.open()
    once = opening.closed_s
    assert 0.02 <= once <= time.monotonic() - began
    assert opening.closed_s == once  # open, it stands still
    opening.close()
    while opening.closed_s < once + 0.02:
        pass
    opening.open()
    assert once + 0.02 <= opening.closed_s <= time.monotonic() - began


def test_who_waits_on_a_loop_that_was_closed_keeps_nobody_waiting(
    loop_factory: MakeLoop, opening: Opening
) -> None:
    opening.close()
    gone = ThreadedLoop(loop_factory)
    gone.begin(opening.wait())
    gone.settle()
    tasks = asyncio.all_tasks(gone.loop)
    gone.break_off()
    for task in tasks:  # asyncio complains of tasks that end like this
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    with threaded_loops(loop_factory, 1) as (here,):
        waiting = here.begin(opening.wait())
        here.settle()
        opening.open()
        waiting.result(10)
    tasks.clear()
    gc.collect()
    assert not opening._wakes


def test_a_callback_runs_once_on_the_loop_that_asked(loop_factory: MakeLoop, opening: Opening) -> None:
    called: list[int] = []

    async def ask() -> None:
        opening.when_open(lambda: called.append(threading.get_ident()))

    async def here() -> int:
        return threading.get_ident()

    with threaded_loops(loop_factory, 1) as (loop,):
        opening.close()
        loop.run(ask())
        opening.open()
        opening.close()
        opening.open()
        loop.run(ask())  # it is open already
        loop.settle()
        assert called == [loop.run(here())] * 2


def test_a_callback_that_was_taken_back_does_not_run(loop_factory: MakeLoop, opening: Opening) -> None:
    called: list[str] = []

    async def main() -> None:
        opening.close()
        forget = opening.when_open(lambda: called.append("forgotten"))
        opening.when_open(lambda: called.append("kept"))
        forget()
        forget()
        opening.open()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert called == ["kept"]


def test_after_a_while_it_says_once_what_everybody_waits_for(
    loop_factory: MakeLoop, opening: Opening, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.opening._SAY_SO_AFTER_S", 0.02)
    said = threading.Semaphore(0)
    say_so = Opening._say_so

    def count(opening: Opening) -> None:
        say_so(opening)
        said.release()

    monkeypatch.setattr(Opening, "_say_so", count)
    with threaded_loops(loop_factory, 2) as loops:
        for time_of_closing in (1, 2):
            opening.close()
            waiting = [loop.begin(opening.wait()) for loop in loops for _ in range(3)]
            lines = partial(log_lines.of, "warning")
            for _ in waiting:
                assert said.acquire(timeout=20)
            assert len(lines()) == time_of_closing
            assert "generation_is_paused" in lines()[-1]
            assert "remedy=continue_generation() opens it" in lines()[-1]
            opening.open()
            for one in waiting:
                one.result(10)
            assert len(lines()) == time_of_closing


def test_who_opens_before_that_hears_nothing(
    loop_factory: MakeLoop, opening: Opening, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("areal_core._engine.opening._SAY_SO_AFTER_S", 10.0)
    opening.close()
    with threaded_loops(loop_factory, 1) as (loop,):
        waiting = loop.begin(opening.wait())
        loop.settle()
        opening.open()
        waiting.result(10)
    assert log_lines == []


def test_opening_and_closing_all_the_time_loses_nobody(loop_factory: MakeLoop, opening: Opening) -> None:
    ended = threading.Event()

    def shake() -> None:
        while not ended.is_set():
            opening.close()
            opening.open()

    async def wait_often() -> None:
        for _ in range(200):
            await opening.wait()
            await asyncio.sleep(0)

    shaking = threading.Thread(target=shake)
    with threaded_loops(loop_factory, 2) as loops:
        shaking.start()
        try:
            for one in [loop.begin(wait_often()) for loop in loops for _ in range(5)]:
                one.result(20)
        finally:
            ended.set()
            shaking.join()
    assert not opening._wakes
