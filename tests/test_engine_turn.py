"""One at a time, on any loop."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from areal_core._engine.turn import Turn
from threaded_loops import MakeLoop, ThreadedLoop, threaded_loops


class Stage:
    """Who has the turn, and who had it."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.entered: list[str] = []
        self.inside = 0
        self.most_inside = 0
        self.go_on = threading.Event()

    async def play(self, name: str) -> None:
        """Take the turn, and leave again."""
        async with self.turn:
            self.entered.append(name)
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
            await asyncio.sleep(0)
            self.inside -= 1

    async def hold(self, held: threading.Event) -> None:
        """Keep the turn until told to go on."""
        async with self.turn:
            held.set()
            await asyncio.to_thread(self.go_on.wait)


def test_tasks_of_several_loops_take_turns(loop_factory: MakeLoop) -> None:
    stage = Stage()
    with threaded_loops(loop_factory, 3) as loops:
        playing = [loop.begin(stage.play(str(number))) for number in range(100) for loop in loops]
        for one in playing:
            one.result(20)
    assert len(stage.entered) == 300
    assert stage.most_inside == 1


def test_the_turn_goes_in_the_order_of_asking(loop_factory: MakeLoop) -> None:
    stage = Stage()
    with threaded_loops(loop_factory, 2) as loops:
        held = threading.Event()
        holding = loops[0].begin(stage.hold(held))
        held.wait()
        playing = []
        for number in range(10):
            playing.append(loops[number % 2].begin(stage.play(str(number))))
            loops[number % 2].settle()
        assert stage.entered == []
        stage.go_on.set()
        for one in [holding, *playing]:
            one.result(20)
    assert stage.entered == [str(number) for number in range(10)]


def test_who_is_cancelled_while_it_waits_is_passed_over(loop_factory: MakeLoop) -> None:
    stage = Stage()
    with threaded_loops(loop_factory, 2) as (here, there):
        held = threading.Event()
        holding = here.begin(stage.hold(held))
        held.wait()
        cancelled, last = there.begin(stage.play("cancelled")), there.begin(stage.play("last"))
        there.settle()
        cancelled.cancel()
        there.settle()
        stage.go_on.set()
        holding.result(20)
        last.result(20)
    assert stage.entered == ["last"]


def test_who_is_cancelled_just_as_its_turn_comes_passes_it_on(loop_factory: MakeLoop) -> None:
    stage = Stage()

    async def main() -> None:
        await stage.turn.__aenter__()
        cancelled = asyncio.create_task(stage.play("cancelled"))
        last = asyncio.create_task(stage.play("last"))
        await asyncio.sleep(0)
        await stage.turn.__aexit__(None, None, None)  # the turn is on its way to the first
        cancelled.cancel()
        async with asyncio.timeout(10):
            await last
        assert cancelled.cancelled()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert stage.entered == ["last"]


def test_a_body_that_raises_passes_the_turn_on(loop_factory: MakeLoop) -> None:
    stage = Stage()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with stage.turn:
                raise ZeroDivisionError
        async with asyncio.timeout(10):
            await stage.play("next")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("collected", [False, True])
def test_who_waits_on_a_loop_that_was_closed_is_passed_over(loop_factory: MakeLoop, collected: bool) -> None:
    stage = Stage()
    with threaded_loops(loop_factory, 1) as (here,):
        held = threading.Event()
        holding = here.begin(stage.hold(held))
        held.wait()
        gone = ThreadedLoop(loop_factory)
        gone.begin(stage.play("gone"))
        gone.settle()
        tasks = asyncio.all_tasks(gone.loop)
        gone.break_off()
        for task in tasks:  # asyncio complains of tasks that end like this
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if collected:
            tasks.clear()
            gc.collect()
        last = here.begin(stage.play("last"))
        here.settle()
        stage.go_on.set()
        holding.result(20)
        last.result(20)
    assert stage.entered == ["last"]
