"""Who keeps a loop late by many short calls: who is named, when, and who is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

import pytest

from areal_core._watch import lateness
from areal_core._watch.lateness import Late, Lateness
from areal_core._watch.loop_watch import Blocked, LoopWatch
from conftest import MakeExecutor
from executor_tools import Playing, trajectory_of
from logged import LogLines
from test_loop_watch import LIB, LONG_S, OURS, STDLIB, USER, frame_in
from threaded_loops import ThreadedLoop, threaded_loops

THRESHOLD_S = 0.25
WINDOW_S = 1.5
EPISODES = 24

MakeLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "WINDOW_S", WINDOW_S)


class Watched:
    """A loop in a thread, a watch of it, and what that has reported."""

    def __init__(self, threaded: ThreadedLoop) -> None:
        self.threaded = threaded
        self.reports: SimpleQueue[Blocked | Late] = SimpleQueue()
        self.watch = LoopWatch(threaded.loop, threaded.run(_ident()), THRESHOLD_S, self.reports.put)
        self.watch.begin()

    def keep_busy(self, *steps: Callable[[], None], until: Callable[[], bool]) -> None:
        """Have many tasks call *steps* again and again, until a condition holds."""
        self.threaded.run(_play_all(steps, until), LONG_S)

    def reported(self) -> list[Blocked | Late]:
        """Return what was reported by now."""
        found = []
        while True:
            try:
                found.append(self.reports.get_nowait())
            except Empty:
                return found


async def _ident() -> int:
    return threading.get_ident()


async def _play_all(steps: tuple[Callable[[], None], ...], until: Callable[[], bool]) -> None:
    async def play() -> None:
        while not until():
            for step in steps:
                step()
            await asyncio.sleep(0)

    await asyncio.gather(*(play() for _ in range(EPISODES)))


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@pytest.fixture
def watched(loop_factory: MakeLoop) -> Iterator[Watched]:
    with threaded_loops(loop_factory, 1) as (threaded,):
        watched = Watched(threaded)
        yield watched
        watched.watch.stop()


def compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def score() -> None:
    compute_score()


def compute_score() -> None:
    end = time.monotonic() + 0.03
    while time.monotonic() < end:
        pass


def ask() -> None:
    time.sleep(0.02)  # waits as a request without await does, with the GIL free


def look_up() -> None:
    end = time.monotonic() + 0.001
    while time.monotonic() < end:
        pass


# -- who is named ----------------------------------------------------------------------------------


def test_many_short_calls_that_keep_the_loop_late_are_named_with_share_and_lag(watched: Watched) -> None:
    watched.keep_busy(score, look_up, until=lambda: not watched.reports.empty())
    (late,) = watched.reported()
    assert isinstance(late, Late)
    assert late.function == "test_loop_lateness.compute_score"
    assert late.where.startswith(f"{__file__}:")
    assert late.functions[0] == (late.function, late.functions[0][1])
    assert 0.5 < late.functions[0][1] <= 1
    assert late.lag_s > EPISODES * 0.03 / 2
    found = watched.watch.blamed
    assert found is not None
    assert found.function == late.function
    assert found.share == pytest.approx(late.functions[0][1], abs=0.2)
    assert 0.5 <= late.late <= 1


def test_waits_that_block_are_named_as_well(watched: Watched) -> None:
    watched.keep_busy(ask, look_up, until=lambda: not watched.reports.empty())
    (late,) = watched.reported()
    assert late.function == "test_loop_lateness.ask"


def test_a_loop_that_is_late_is_told_of_once_in_a_while(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.keep_busy(score, until=lambda: not watched.reports.empty())
    watched.keep_busy(score, until=after(WINDOW_S / 2))
    assert len(watched.reported()) == 1
    monkeypatch.setattr(lateness, "REPORTED_EVERY_S", 0.0)
    watched.keep_busy(score, until=lambda: not watched.reports.empty())
    assert isinstance(watched.reported()[0], Late)


def test_a_loop_that_comes_in_time_is_not_told_of_at_once(watched: Watched) -> None:
    watched.threaded.run(_alone(score, after(2 * WINDOW_S)), LONG_S)
    assert not any(isinstance(one, Late) for one in watched.reported())


def test_a_loop_that_is_hardly_late_but_mostly_in_the_users_code_is_told_of_after_some_glances(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lateness, "_FEWEST_GLANCES", 10)
    watched.threaded.run(_alone(score, lambda: not watched.reports.empty()), LONG_S)
    (late,) = watched.reported()
    assert isinstance(late, Late)
    assert late.functions[0][0] == late.function == "test_loop_lateness.compute_score"
    assert late.busy is not None
    assert 0.3 <= late.functions[0][1] <= late.busy <= 1
    assert late.lag_s >= 0.02
    assert late.fields()["busy"] == f"{late.busy:.0%} of {late.seconds:g} s"


def test_a_loop_at_rest_is_seen_in_nobodys_code(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "_FELT_S", 0.0)
    seen: list[int] = []
    glanced = threading.Event()
    glance = Lateness.glance

    def noticed(judge: Lateness, callback: list[FrameType], now: float) -> None:
        glance(judge, callback, now)
        seen.append(sum(one.function is not None for one in judge._glances))
        if len(seen) == 12:
            glanced.set()

    monkeypatch.setattr(Lateness, "glance", noticed)
    assert glanced.wait(LONG_S)
    assert max(seen) == 0


async def _alone(step: Callable[[], None], until: Callable[[], bool]) -> None:
    """Call *step* all the time, one call in each turn of the loop."""
    while not until():
        step()
        await asyncio.sleep(0)


def test_one_that_is_late_for_a_moment_is_not_told_of(watched: Watched) -> None:
    watched.keep_busy(score, until=after(0.01))
    watched.threaded.run(_alone(score, after(WINDOW_S)), LONG_S)
    assert not any(isinstance(one, Late) for one in watched.reported())


def test_a_function_that_is_named_for_each_call_is_not_named_twice(watched: Watched) -> None:
    def block() -> None:
        compute(3 * THRESHOLD_S)

    named: set[str | None] = set()

    def is_named() -> bool:  # after others that the machine held up
        named.update(one.function for one in watched.reported())
        return "test_loop_lateness.compute" in named

    watched.threaded.run(_alone(block, is_named), LONG_S)
    watched.keep_busy(lambda: compute(0.03), until=after(1.5 * WINDOW_S))
    again = [one.function for one in watched.reported() if isinstance(one, Late)]
    assert "test_loop_lateness.compute" not in again


# -- whose time it is ------------------------------------------------------------------------------


def frames_of(*functions: str) -> list[FrameType]:
    """Give the frames of *functions*, the innermost first."""
    frame: FrameType | None = frame_in(*functions)
    found = []
    for _ in functions:
        assert frame is not None
        found.append(frame)
        frame = frame.f_back
    return found


def told_of(seen: dict[tuple[str, ...], int]) -> list[Late]:
    """Return what is said of a loop that is late all the time and is looked at ten times a second.

    It was so often, of ten looks, in these functions.
    """
    reports: list[Late] = []
    judge = Lateness(0.05, reports.append)
    looks = [frames_of(*functions) for functions, count in seen.items() for _ in range(count)]
    for number in range(100):
        now = 1000.0 + number / 10
        judge.look(looks[7 * number % len(looks)], now - 0.1, now)
        judge.end(now - 0.1, now)
    return reports


FLOW = (f"{USER} flow", f"{USER} reward", f"{LIB} sympy")


@pytest.mark.parametrize(
    ("seen", "functions"),
    [
        ({FLOW: 10}, ["reward.f 100%"]),
        ({FLOW: 6, (f"{USER} flow",): 3, (): 1}, ["reward.f 60%", "flow.f 30%"]),
        ({(f"{OURS} workflows", f"{LIB} proj.flow"): 8, (): 2}, ["proj.flow.f 80%"]),
        ({FLOW: 4, (): 6}, None),
        ({(f"{OURS} engine", f"{STDLIB} json"): 10}, None),
        ({(f"{LIB} aiohttp.client_proto", f"{STDLIB} json"): 10}, None),
        ({(f"{LIB} ray.actor", f"{STDLIB} json"): 10}, None),
        ({(f"{USER} flow", f"{LIB} aiohttp.client"): 10}, ["flow.f 100%"]),
    ],
    ids=["one", "several", "an installed one", "little of it", "ours", "a client's", "Ray's", "in a client"],
)
@pytest.mark.any_loop
def test_it_is_the_users_code_that_is_named(
    loop_name: str,
    monkeypatch: pytest.MonkeyPatch,
    seen: dict[tuple[str, ...], int],
    functions: list[str] | None,
) -> None:
    monkeypatch.setattr(lateness, "WINDOW_S", 1.95)  # after ten looks it is late for more than half of that
    told = told_of(seen)
    assert len(told) == (functions is not None)
    if functions is not None:
        (late,) = told
        shown = [f"{function} {round(share, 1):.0%}" for function, share in late.functions]
        assert shown == functions
        assert (round(late.late, 1), round(late.lag_s, 3)) == (0.5, 0.1)  # as soon as it is half of the time
        assert set(late.fields()) == {"lag_s", "late", "functions", "where", "remedy"}
        assert late.fields()["late"] == f"{late.late:.0%} of 1.95 s"


@pytest.mark.any_loop
def test_time_in_which_nobody_could_look_is_of_no_one(
    loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lateness, "WINDOW_S", 10.0)
    reports: list[Late] = []
    judge = Lateness(0.05, reports.append)
    flow, none = frames_of(*FLOW), frames_of(f"{OURS} engine")
    now = 1000.0
    for _ in range(30):
        now += 0.1
        judge.look(none, now - 0.1, now)
        judge.end(now - 0.1, now)
    judge.look(flow, now, now + 6.0)
    judge.end(now, now + 6.0)
    assert reports == []
    now += 6.0
    for _ in range(40):  # where it is seen as often as may be it is accused after all
        now += 0.1
        judge.look(flow, now - 0.1, now)
        judge.end(now - 0.1, now)
    assert len(reports) == 1


def glanced_at(seen: dict[tuple[str, ...], int], count: int, lag_s: float = 0.08) -> list[Late]:
    """Return what is said after *count* glances, eight a second, of a loop that is late by *lag_s* at most.

    So many of ten glances find it in these functions.
    """
    reports: list[Late] = []
    judge = Lateness(0.125, reports.append)
    looks = [frames_of(*functions) for functions, times in seen.items() for _ in range(times)]
    for number in range(count):
        now = 1000.0 + number / 8
        judge.glance(looks[7 * number % len(looks)], now)
        judge.end(now, now + lag_s * (number % 8) / 7)
    return reports


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("seen", "count", "lag_s", "busy"),
    [
        ({FLOW: 3, (): 7}, 90, 0.08, 0.3),
        ({FLOW: 2, (): 8}, 400, 0.08, None),
        ({FLOW: 3, (): 7}, 70, 0.08, None),
        ({FLOW: 10}, 400, 0.01, None),
        ({(f"{OURS} engine", f"{STDLIB} json"): 10}, 400, 0.08, None),
    ],
    ids=["three of ten", "two", "too few glances", "not late", "ours"],
)
def test_three_of_ten_glances_in_the_users_code_are_told_of(
    seen: dict[tuple[str, ...], int], count: int, lag_s: float, busy: float | None
) -> None:
    told = glanced_at(seen, count, lag_s)
    assert [round(late.busy or 0, 2) for late in told] == ([] if busy is None else [busy])
    for late in told:
        assert late.functions == (("reward.f", late.busy),)
        assert (round(late.lag_s, 3), late.late, 9.5 <= late.seconds <= 11.5) == (0.08, 0.0, True)
        assert set(late.fields()) == {"lag_s", "late", "busy", "functions", "where", "remedy"}


@pytest.mark.any_loop
def test_the_share_for_which_it_was_late_is_of_all_the_time_that_is_told() -> None:
    """Every fourth heartbeat is answered a fifth of a second late, for more than a minute."""
    told: list[Late] = []
    judge, now = Lateness(0.125, told.append), 1000.0
    for number in range(600):
        late_s = 0.2 if number % 4 == 0 else 0.001
        judge.glance(frames_of(*FLOW), now)
        judge.end(now, now + late_s)
        now += max(late_s, 0.125)
    assert [round(one.seconds) for one in told] == [11, 20]
    for one in told:
        assert one.late == pytest.approx(0.2 / (0.2 + 3 * 0.125), abs=0.02)


@pytest.mark.any_loop
def test_glances_are_told_of_once_in_a_while_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(glanced_at({FLOW: 10}, 8 * 69)) == 1
    assert len(glanced_at({FLOW: 10}, 8 * 72)) == 2
    monkeypatch.setattr(lateness, "_GLANCED_S", 10.0)
    judge = Lateness(0.0, lambda _: None)
    for number in range(1000):
        judge.glance(frames_of(*FLOW), 1000.0 + number / 8)
        judge.end(1000.0 + number / 8, 1000.0 + number / 8)
    assert len(judge._glances) == 80
    assert len(judge._lags) <= 81


# -- an executor -----------------------------------------------------------------------------------


def test_an_executor_says_so_in_the_log(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(consumer_batch_size=EPISODES, loop_block_warning=THRESHOLD_S)
    told = threading.Event()

    async def play(number: int) -> Any:
        while not told.is_set():
            compute_score()
            await asyncio.sleep(0)
        return trajectory_of(number)

    for number in range(EPISODES):
        executor.submit(number, Playing(play))
    line = log_lines.wait_for("loop_is_late ", LONG_S)
    told.set()
    assert executor.wait(EPISODES, LONG_S)
    assert line.level == "warning"
    assert " functions=test_loop_lateness.compute_score " in line.message
    assert "lag_s=0." in line.message or "lag_s=1." in line.message
    assert "% of 1.5 s" in line.message
    assert "offloaded(function, to='process')" in line.message
