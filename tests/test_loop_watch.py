"""Who keeps a loop from turning: who is named, who is not, and what the watching itself does."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat, starmap
from pathlib import Path
from queue import SimpleQueue
from types import CodeType, FrameType
from typing import Any

import pytest

import areal_core
from areal_core._watch import looks, loop_watch
from areal_core._watch.lateness import Late
from areal_core._watch.loop_watch import Blocked, LoopWatch
from areal_core._watch.user_frames import name, users
from children import RunScript
from conftest import MakeRunner
from interrupts import each_step, interrupt
from logged import LogLine, LogLines
from threaded_loops import ThreadedLoop, threaded_loops

LONG_S = 20.0
THRESHOLD_S = 0.1
BLOCK_S = 0.25

MakeLoop = Callable[[], asyncio.AbstractEventLoop]


_looks_made: SimpleQueue[None] = SimpleQueue()


def blocks() -> Iterator[None]:
    """Block for some looks of the watching thread, however busy the machine is, when it is iterated in C."""
    return starmap(_looks_made.get, repeat((True, LONG_S), 5))


class Watched:
    """A loop in a thread, a watch of it, and what that has reported."""

    def __init__(self, threaded: ThreadedLoop) -> None:
        self.threaded = threaded
        self.reports: SimpleQueue[Any] = SimpleQueue()
        self.thread_id = threaded.run(_ident())
        self.watch = LoopWatch(threaded.loop, self.thread_id, THRESHOLD_S, self.reports.put)

    def block(self, function: Callable[..., object], *args: Any) -> None:
        """Call *function* on the loop, in a workflow, and let the loop turn."""
        while not _looks_made.empty():
            _looks_made.get()
        self.threaded.run(play(function, *args))
        self.threaded.settle()

    def next_report(self) -> Blocked:
        report: Blocked = self.reports.get(timeout=LONG_S)
        return report


async def _ident() -> int:
    return threading.get_ident()


@pytest.fixture(autouse=True)
def _looks_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    note_calls(monkeypatch, "_look", _looks_made)


@pytest.fixture
def watched(loop_factory: MakeLoop) -> Iterator[Watched]:
    with threaded_loops(loop_factory, 1) as (threaded,):
        watched = Watched(threaded)
        watched.watch.begin()
        yield watched
        watched.watch.stop()


def note_calls(monkeypatch: pytest.MonkeyPatch, method: str, calls: SimpleQueue[None]) -> None:
    """Put something into *calls* after each call of a method of the watching thread."""
    inner = getattr(loop_watch._Watcher, method)

    def call(self: Any, *args: Any) -> Any:
        try:
            return inner(self, *args)
        finally:
            calls.put(None)

    monkeypatch.setattr(loop_watch._Watcher, method, call)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> Iterator[SimpleQueue[None]]:
    """Give a queue of the calls of a method of the watching thread."""
    calls: SimpleQueue[None] = SimpleQueue()
    with monkeypatch.context() as patch:
        note_calls(patch, method, calls)
        yield calls


# -- what the loop is kept from turning by -------------------------------------------------------------


async def play(function: Callable[..., object], *args: Any) -> None:
    function(*args)


def reward() -> None:
    compute()


def compute() -> None:
    list(blocks())


def reward_in_small_parts() -> None:
    while _looks_made.qsize() < 5:
        small_part()


def small_part() -> None:
    time.sleep(0.005)


def other_reward() -> None:
    list(blocks())


def sleep() -> None:
    time.sleep(BLOCK_S)


def match() -> None:
    """Keep the GIL for some tenths of a second."""
    re.match(r"(a+)+$", "a" * 23 + "b")


async def is_busy(seconds: float) -> float:
    """Return how long the longest of many short steps took: on a machine that stalls they are not short."""
    longest_s = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        longest_s = max(longest_s, *await asyncio.gather(*(short_step() for _ in range(300))))
    return longest_s


async def short_step() -> float:
    begun = now = time.monotonic()
    while now < begun + 0.001:
        now = time.monotonic()
    return now - begun


def line_of(function: Callable[..., Any], further: int = 1) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + further}"


# -- who is named -------------------------------------------------------------------------------------


def test_the_innermost_function_is_named_with_its_line_and_its_workflow(watched: Watched) -> None:
    watched.block(reward)
    blocked = watched.next_report()
    assert (blocked.function, blocked.where) == ("test_loop_watch.compute", line_of(compute))
    assert (blocked.workflow, blocked.times, blocked.ended) == ("test_loop_watch.play", 1, True)
    assert THRESHOLD_S <= blocked.seconds < LONG_S
    assert re.findall(r"in (\w+)\n", blocked.stack) == ["play", "reward", "compute"]
    assert blocked.fields() == {
        "function": "test_loop_watch.compute",
        "where": line_of(compute),
        "seconds": round(blocked.seconds, 3),
        "times": 1,
        "workflow": "test_loop_watch.play",
        "remedy": "await offloaded(function, to='thread')(...), or to='process' if it computes",
    }


def test_who_was_found_is_known_while_it_blocks_and_each_time_after(watched: Watched) -> None:
    assert (watched.watch.blamed, watched.reports.qsize()) == (None, 0)
    seen: SimpleQueue[tuple[Any, float | None]] = SimpleQueue()

    def look_on() -> None:
        """Block, and have another thread look meanwhile, without an answer to a heartbeat."""
        while (found := watched.watch.blamed) is None or found.seconds < 2 * THRESHOLD_S:
            time.sleep(0.01)
        seen.put((found, watched.watch.lag_s))

    watched.block(look_on)
    found, lag_s = seen.get(timeout=LONG_S)
    assert (found.function.rpartition(".")[2], found.share) == ("look_on", 1.0)
    assert found.where.startswith(f"{__file__}:")
    assert lag_s is not None
    assert lag_s >= 2 * THRESHOLD_S
    assert watched.next_report().function == found.function
    for count in (1, 2):  # the second is too soon to be reported
        watched.block(reward)
        latest = watched.watch.blamed
        assert latest is not None
        assert latest.function == "test_loop_watch.compute"
        assert latest.at > found.at, count
        found = latest
    assert watched.next_report().function == "test_loop_watch.compute"
    assert watched.reports.empty()


def test_a_function_that_calls_many_short_ones_is_named_not_they(watched: Watched) -> None:
    watched.block(reward_in_small_parts)
    assert watched.next_report().function == "test_loop_watch.reward_in_small_parts"


def test_a_c_function_that_keeps_the_gil_is_named_by_its_caller(watched: Watched) -> None:
    for _ in range(20):  # on a busy machine it may be in doubt, and then is not reported
        watched.block(match)
        if not watched.reports.empty():
            break
    blocked = watched.next_report()
    assert (blocked.function, blocked.where) == ("test_loop_watch.match", line_of(match, 2))
    found = watched.watch.blamed
    assert found is not None
    assert (found.function, found.where) == (blocked.function, blocked.where)


def test_who_waits_for_the_gil_of_another_thread_is_not_accused(watched: Watched) -> None:
    def give_way() -> None:
        thread.start()
        begun.wait()
        until = time.monotonic() + 0.02
        while time.monotonic() < until:  # until the other one has looked, as it could not before
            pass

    def hold() -> None:
        begun.set()
        match()

    watched.block(reward)
    watched.next_report()
    for _ in range(2):
        begun = threading.Event()
        thread = threading.Thread(target=hold)
        watched.block(give_way)
        thread.join()
    watched.block(other_reward)
    assert watched.next_report().function == "test_loop_watch.other_reward"


def test_a_loop_that_is_busy_with_many_short_steps_accuses_nobody(watched: Watched) -> None:
    longest_s = watched.threaded.run(is_busy(4 * BLOCK_S))
    watched.block(compute)
    accused = [watched.next_report().function]
    while accused[-1] != "test_loop_watch.compute":
        accused.append(watched.next_report().function)
    assert accused == ["test_loop_watch.compute"] or longest_s >= THRESHOLD_S / 2
    assert watched.reports.empty()


def test_what_blocks_for_less_than_the_threshold_is_not_reported(watched: Watched) -> None:
    for _ in range(20):
        watched.block(small_part)
    watched.block(compute)
    assert watched.next_report().function == "test_loop_watch.compute"


def test_a_runner_is_watched_and_its_own_frames_are_left_out(make_runner: MakeRunner) -> None:
    reports: SimpleQueue[Any] = SimpleQueue()
    runner = make_runner()
    loop, thread_id = runner.run(where_am_i)
    watch = LoopWatch(loop, thread_id, THRESHOLD_S, reports.put)
    watch.begin()
    runner.submit(play, reward)
    runner.wait(1, timeout=LONG_S)
    blocked = reports.get(timeout=LONG_S)
    watch.stop()
    assert (blocked.function, blocked.workflow) == ("test_loop_watch.compute", "test_loop_watch.play")
    assert "loop_thread.py" not in blocked.stack


async def where_am_i() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


def frame_in(*functions: str) -> FrameType:
    """Give the frame of the last of *functions* "origin module", each called by the one before."""
    call: Callable[[], FrameType] = sys._getframe
    for function in reversed(functions):
        directory, module = function.split()
        code = compile("def f():\n    return g()\n", f"{directory}{module}.py", "exec")
        namespace: dict[str, Any] = {"__name__": module, "g": call}
        exec(code, namespace)
        assert isinstance(namespace["f"].__code__, CodeType)
        call = namespace["f"]
    return call()


USER, LIB, OURS = (
    "/home/me/",
    "/venv/lib/python3.11/site-packages/",
    str(Path(areal_core.__file__).parent) + "/",
)
STDLIB = re.__file__.removesuffix("re/__init__.py")


@pytest.mark.parametrize(
    ("functions", "found"),
    [
        ([f"{USER} flow", f"{USER} reward", f"{LIB} sympy", f"{STDLIB} re"], ["reward.f", "flow.f"]),
        ([f"{OURS} workflows", f"{USER} reward", f"{LIB} sympy"], ["reward.f"]),
        ([f"{OURS} workflows", f"{LIB} proj.flow", f"{LIB} proj.score", f"{LIB} sympy"],
         ["proj.score.f", "proj.flow.f"]),
        ([f"{LIB} agents", f"{USER} tool", f"{LIB} sympy"], ["tool.f", "agents.f"]),
        ([f"{OURS} trajectory", f"{STDLIB} json"], ["json.f", "trajectory.f"]),
    ],
    ids=["a project", "ours calls a project", "an installed project", "installed calls a project", "ours"],
)  # fmt: skip
@pytest.mark.any_loop
def test_whose_code_it_is(loop_name: str, functions: list[str], found: list[str]) -> None:
    frame: FrameType | None = frame_in(*functions)
    frames = []
    for _ in functions:
        assert frame is not None
        frames.append(frame)
        frame = frame.f_back
    assert list(map(name, users(frames))) == found


# -- how often and when --------------------------------------------------------------------------------


def test_a_repeated_offender_is_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        watched.block(compute)
    watched.block(other_reward)
    assert [watched.next_report().function for _ in range(2)] == [
        "test_loop_watch.compute",
        "test_loop_watch.other_reward",
    ]
    monkeypatch.setattr(looks, "REPORTED_EVERY_S", 0.0)
    watched.block(compute)
    assert watched.next_report().times == 3


def test_what_may_never_end_is_reported_while_it_blocks(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LONG_S", BLOCK_S)
    go = threading.Event()
    task = watched.threaded.begin(play(go.wait))
    blocked = watched.next_report()
    assert (blocked.function, blocked.ended) == ("test_loop_watch.play", False)
    assert blocked.fields()["stack"] == f"\n{blocked.stack}"
    go.set()
    task.result(LONG_S)
    last = watched.next_report()
    assert (last.function, last.ended, last.times) == (blocked.function, True, 1)
    assert last.seconds > blocked.seconds > BLOCK_S


def test_at_rest_nothing_is_posted_or_reported(
    loop_factory: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        counted(monkeypatch, "_watch") as rests,
        counted(monkeypatch, "post") as posts,
        threaded_loops(loop_factory, 1) as (threaded,),
    ):
        watched = Watched(threaded)
        posts.get(timeout=LONG_S)  # the one of a new watch
        watched.block(sleep)
        watched.watch.begin()
        posts.get(timeout=LONG_S)
        watched.watch.rest()
        rests.get(timeout=LONG_S)
        while not posts.empty():
            posts.get()
        watched.block(sleep)
        assert posts.empty()
        watched.watch.begin()
        posts.get(timeout=LONG_S)
        watched.block(other_reward)
        assert watched.next_report().function == "test_loop_watch.other_reward"
        watched.watch.stop()


def test_what_blocks_when_rest_comes_is_still_reported(watched: Watched) -> None:
    async def block_and_rest() -> None:
        compute()
        watched.watch.rest()

    watched.threaded.run(block_and_rest())
    assert watched.next_report().function == "test_loop_watch.compute"


def test_only_the_first_report_that_raises_is_logged(watched: Watched, log_lines: LogLines) -> None:
    def fail(blocked: Blocked | Late) -> None:
        watched.reports.put(blocked)
        raise error

    error = ValueError("no report")
    watched.watch.report = fail
    for function in (compute, other_reward):
        watched.block(function)
        assert watched.next_report().function == f"test_loop_watch.{function.__name__}"
    watched.watch.stop()
    assert log_lines == [LogLine("error", "loop_watch_report_failed function=test_loop_watch.compute", error)]


def test_a_log_that_raises_does_not_end_the_watch(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        watched.watch.report = watched.reports.put
        raise ValueError("no log")

    monkeypatch.setattr(logging.getLogger("areal_core"), "error", fail)
    watched.watch.report = fail
    watched.block(compute)
    watched.block(other_reward)
    assert watched.next_report().function == "test_loop_watch.other_reward"


class Local:
    """Tells in which thread it died."""

    def __init__(self, died_in: SimpleQueue[int]) -> None:
        self.died_in = died_in
        self.held = False

    def __del__(self) -> None:
        self.died_in.put(threading.get_ident())


def test_what_was_in_a_frame_dies_in_the_thread_of_the_loop(watched: Watched) -> None:
    died_in: SimpleQueue[int] = SimpleQueue()

    def hold() -> None:
        local = Local(died_in)
        list(blocks())
        local.held = True

    watched.block(hold)
    watched.next_report()
    assert died_in.get(timeout=LONG_S) == watched.thread_id


# -- its own end ---------------------------------------------------------------------------------------


def watching() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "areal-core-watch" and one.is_alive()]


def all_ended() -> bool:
    for thread in watching():
        thread.join(LONG_S)
    return not watching()


def test_stopping_ends_the_thread_at_once_and_once(watched: Watched) -> None:
    watched.watch.stop()
    assert not watching()
    watched.watch.stop()
    watched.watch.begin()
    assert not watching()


def test_stopping_reports_what_blocks_as_it_is(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    with counted(monkeypatch, "_look") as looks:
        task = watched.threaded.begin(play(go.wait))
        for _ in range(4):
            looks.get(timeout=LONG_S)
        watched.watch.stop()
    assert watched.next_report().ended is False
    go.set()
    task.result(LONG_S)


def test_it_may_be_stopped_by_what_it_reports_to(watched: Watched) -> None:
    stopped = threading.Event()

    def stop(_: Blocked | Late) -> None:
        watched.watch.stop()
        stopped.set()

    watched.watch.report = stop
    watched.block(compute)
    assert stopped.wait(LONG_S)
    watched.watch.stop()
    assert not watching()


@pytest.mark.parametrize("active", [True, False], ids=["watching", "at rest"])
def test_one_that_is_forgotten_ends_by_itself(
    loop_factory: MakeLoop, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    class Owner:
        def __init__(self, threaded: ThreadedLoop) -> None:
            self.watch = LoopWatch(threaded.loop, threaded.run(_ident()), THRESHOLD_S, self.report)

        def report(self, blocked: Blocked | Late) -> None: ...

    with (
        threaded_loops(loop_factory, 1) as (threaded,),
        counted(monkeypatch, "_watch") as rests,
        counted(monkeypatch, "post") as posts,
    ):
        owner = Owner(threaded)
        posts.get(timeout=LONG_S)  # the one of a new watch
        owner.watch.begin()
        [thread] = watching()
        posts.get(timeout=LONG_S)
        if not active:
            owner.watch.rest()
            rests.get(timeout=LONG_S)
        del owner
        gc.collect()
        thread.join(LONG_S)
        assert not thread.is_alive()


def test_it_ends_with_the_loop(loop_factory: MakeLoop) -> None:
    with threaded_loops(loop_factory, 1) as (threaded,):
        watched = Watched(threaded)
        watched.watch.begin()
        [thread] = watching()
        threaded.close()
        thread.join(LONG_S)
        assert not thread.is_alive()
        watched.watch.stop()


def test_a_ctrl_c_anywhere_in_its_calls_does_no_harm(
    loop_factory: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls(watch: LoopWatch) -> None:
        watch.begin()
        watch.rest()
        watch.begin()
        watch.stop()

    with threaded_loops(loop_factory, 1) as (threaded,), counted(monkeypatch, "post") as posts:
        for step in each_step():
            watch = LoopWatch(threaded.loop, threaded.run(_ident()), THRESHOLD_S, print)
            interruption = interrupt(lambda watch=watch: calls(watch), step)  # type: ignore[misc]
            if not watch._watcher._stopping:
                while not posts.empty():
                    posts.get()
                watch.begin()
                posts.get(timeout=LONG_S)
            watch.stop()
            assert all_ended()
            if not interruption.tripped:
                break


def test_a_program_ends_while_it_watches(run_script: RunScript) -> None:
    script = run_script(
        """
        import asyncio, importlib, os, threading
        from areal_core._watch.loop_watch import LoopWatch

        def run():
            loop.call_soon(begun.set)
            loop.run_forever()

        begun = threading.Event()
        loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        begun.wait()
        watch = LoopWatch(loop, thread.ident, 0.002, lambda blocked: None)
        watch.begin()
        answered = threading.Event()
        loop.call_soon_threadsafe(answered.set)
        answered.wait()
        print("over")
        """,
        flags=("-X", "dev", "-W", "error", "-W", "ignore::ResourceWarning"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "over\n", "")
