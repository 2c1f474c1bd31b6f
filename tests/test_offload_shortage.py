"""When the log says that offloaded calls wait for workers, and what it advises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from areal_core._offload import shortage
from areal_core._offload.shortage import Shortage
from areal_core.offload import OffloadStats, configure_offload, offloaded
from conftest import MakeExecutor
from executor_tools import WAIT_S, Playing, trajectory_of
from logged import LogLines
from offload_jobs import give
from threaded_loops import turns_until


@pytest.fixture
def one_worker() -> Iterator[None]:
    configure_offload(max_threads=1, max_processes=1)
    yield
    configure_offload()


class Workers:
    """Two workers that are watched on a clock of the test's."""

    def __init__(self, **stats: Any) -> None:
        self.now = 1000.0
        self.made = 0
        self._given = {"place": "process", "workers": 2, "processors": 8, **stats}
        self.shortage = Shortage(2, self.stats)

    def stats(self) -> OffloadStats:
        return OffloadStats(**self._given, busy=self.made)

    def note(self, made: int, waiting: int) -> None:
        self.made = made
        self.shortage.note(self.now, made, waiting)

    def pass_by(self, seconds: float, waiting: int) -> None:
        """Let so many *seconds* pass with so many calls that wait, and both others ending in each second."""
        for _ in range(int(seconds)):
            self.note(2, waiting)
            self.now += 1.0
            self.note(0, waiting)
        self.note(2, waiting)


def share_in(line: str) -> str:
    return line.split("share=")[1].split(" remedy=")[0].strip("'")


@pytest.mark.any_loop
def test_calls_that_wait_for_long_are_told_of_with_what_to_do(log_lines: LogLines) -> None:
    Workers().pass_by(11, waiting=60)
    (line,) = log_lines.of("warning")
    assert line.startswith("offload_waiting place=process workers=2 waiting=60 share=100% of 10 s remedy=")
    assert line.endswith("configure_offload(max_processes=8) has one for each processor")


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("stats", "says"),
    [
        ({"processors": 2}, "all 2 processors are taken"),
        ({"processors": 1}, "the only processor is taken"),
        (
            {"place": "thread", "took_s": 9.0, "computed_s": 8.0},
            "they compute, and more threads would not help: to='process'",
        ),
        ({"place": "thread", "took_s": 9.0, "computed_s": 0.1}, "configure_offload(max_threads=...) allows"),
    ],
    ids=["processes for all processors", "one processor", "threads that compute", "threads that wait"],
)
def test_what_is_advised_depends_on_what_there_is(
    log_lines: LogLines, stats: dict[str, Any], says: str
) -> None:
    Workers(**stats).pass_by(11, waiting=5)
    (line,) = log_lines.of("warning")
    assert says in line
    assert "max_processes" not in line


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([(4, 60), (7, 0)], []),
        ([(6, 60), (5, 0)], ["60% of 10 s"]),
        ([(30, 2)], []),
        ([(30, 3)], ["100% of 10 s"]),
        ([(300, 0), (5, 60)], []),
        ([(69, 60)], ["100% of 10 s"]),
        ([(71, 60)], ["100% of 10 s", "100% of 10 s"]),
    ],
    ids=["a crowd", "a longer one", "no more than are made", "more", "after long", "a minute", "longer"],
)
def test_it_is_told_of_when_more_wait_than_are_made_for_half_of_the_time_once_a_minute(
    log_lines: LogLines, phases: list[tuple[float, int]], told: list[str]
) -> None:
    workers = Workers()
    for seconds, waiting in phases:
        workers.pass_by(seconds, waiting)
    assert [share_in(line) for line in log_lines.of("warning")] == told


# -- an executor -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize("place", ["thread", "process"])
def test_an_executor_whose_rewards_wait_says_so_in_the_log(
    make_executor: MakeExecutor, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    monkeypatch.setattr(shortage, "_WINDOW_S", 0.2)
    executor = make_executor(consumer_batch_size=8)
    told = threading.Event()
    judge = offloaded(give, to=place)

    async def play(number: int) -> Any:
        while not told.is_set():
            await judge(number)
        return trajectory_of(number)

    for number in range(8):
        executor.submit(number, Playing(play))
    line = log_lines.wait_for("offload_waiting ")
    told.set()
    executor.wait(8, WAIT_S)
    assert line.level == "warning"
    assert f" place={place} workers=1 waiting=7 share=" in line.message


def test_a_call_that_is_cancelled_while_it_waits_waits_no_more(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[int, int]] = []
    monkeypatch.setattr(Shortage, "note", lambda _, now, made, waiting: noted.append((made, waiting)))
    configure_offload(max_threads=1)
    go = threading.Event()

    async def act() -> None:
        first = asyncio.ensure_future(offloaded(go.wait)(WAIT_S))
        await turns_until(lambda: bool(noted))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await offloaded(go.wait)(WAIT_S)
        go.set()
        await first

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(act())
    finally:
        configure_offload()
    assert noted == [(1, 0), (1, 1), (1, 0), (0, 0)]
