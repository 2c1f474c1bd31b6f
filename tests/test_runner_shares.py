"""How the time that destroy has is shared out, measured on a loop whose time passes at once."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from areal_core._runner import shutdown
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.loop_cleanup import register_loop_cleanup
from conftest import MakeRunner
from doors import Door, break_down
from logged import LogLines


class _Hasty(selectors.DefaultSelector):
    """Where a loop would wait for a timer, let the time pass at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout and 0)
        if not ready and timeout:
            self.now += timeout
        return ready


class HastyLoop(asyncio.SelectorEventLoop):
    """Run timers without waiting for them; where there is none, wait for other threads."""

    def __init__(self) -> None:
        self._hasty = _Hasty()
        super().__init__(self._hasty)

    def time(self) -> float:
        return self._hasty.now


@pytest.mark.any_loop
@pytest.mark.parametrize(("seconds", "ended"), [(3.0, ["told", "ended"]), (5.0, ["told"])])
def test_a_generator_has_the_grace_to_clean_up(
    make_runner: MakeRunner, seconds: float, ended: list[str]
) -> None:
    runner, kept, said = make_runner(cancel_grace=4.0, loop_factory=HastyLoop), [], list[str]()

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            said.append("told")
            await asyncio.sleep(seconds)
            said.append("ended")

    async def start() -> None:
        kept.append(generate())
        await anext(kept[0])

    runner.run(start)
    runner.destroy()
    assert said == ended


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("timeout", "seconds"), [(1e6, 10.0), (10.0, (10.0 - 1.0) / 2), (4.0, (4.0 - 4.0 / 5) / 2)]
)
def test_loop_cleanup_has_half_of_the_timeout_and_at_most_ten_seconds(
    make_runner: MakeRunner, log_lines: LogLines, timeout: float, seconds: float
) -> None:
    """Less a second, or a fifth, that is kept for the loop's own close."""
    runner = make_runner(loop_factory=HastyLoop)

    async def register() -> None:
        register_loop_cleanup(Door().walk_through, timeout=1e6)

    runner.run(register)
    runner.destroy(timeout)
    [line] = log_lines.of("error")
    assert line.startswith("loop_cleanup_timed_out")
    given = float(line.partition(" seconds=")[2].split()[0])
    assert seconds - 0.08 < given <= seconds  # less what has passed


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        pytest.param(lambda runner: runner.destroy(None), 20.0, id="no timeout"),
        pytest.param(lambda runner: runner.destroy(60.0), 20.0, id="60 s"),
        pytest.param(lambda runner: runner.destroy(), (30.0 - 1.0) / 2, id="the default"),
        pytest.param(lambda runner: runner.destroy(4.0), (4.0 - 4.0 / 5) / 2, id="4 s"),
        pytest.param(lambda runner: break_down(runner, OSError("broken")), 30.0 / 2, id="a death"),
    ],
)
def test_tasks_have_the_grace_or_half_of_the_timeout_before_they_are_told_again(
    make_runner: MakeRunner, end: Callable[[AsyncTaskRunner[Any]], None], seconds: float
) -> None:
    """Less what is kept for the loop's own close."""
    runner, door, told = make_runner(cancel_grace=20.0, loop_factory=HastyLoop), Door(), list[float]()

    async def refuse() -> None:
        while True:
            try:
                await door.walk_through()
            except asyncio.CancelledError:
                told.append(asyncio.get_running_loop().time())

    runner.submit(refuse)
    door.wait_for()
    end(runner)
    assert seconds - 0.08 < told[1] - told[0] < seconds + 0.01


@pytest.mark.any_loop
def test_with_no_grace_a_task_has_a_few_turns_to_clean_up(make_runner: MakeRunner) -> None:
    runner, door, cleaned = make_runner(cancel_grace=0, loop_factory=HastyLoop), Door(), list[bool]()

    async def clean_up() -> None:
        try:
            await door.walk_through()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.append(True)

    runner.submit(clean_up)
    door.wait_for()
    runner.destroy()
    assert cleaned == [True]
    assert runner.stats().abandoned == 0


@pytest.mark.any_loop
def test_a_task_that_ends_in_the_very_last_turn_is_not_abandoned(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, ended = make_runner(cancel_grace=0, loop_factory=HastyLoop), Door(), list[bool]()

    async def end_at_last() -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await door.walk_through()
        await asyncio.sleep(shutdown._SHORTEST_ROUND_S)
        await asyncio.sleep(0)  # a turn more, and the loop would have stopped
        ended.append(not runner.stats().finished)

    runner.submit(end_at_last)
    door.wait_for()
    runner.destroy()
    assert ended == [True]
    assert [line.message for line in log_lines] == ["tasks_cancelled_by_destroy count=1"]
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
