"""Looks at the core from callers' threads, while the loop thread works on it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

import areal_core._executor.desk as desk_module
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import LONG_S, start_blocked
from executor_tools import Engine
from interrupts import each_step


def desk_of(executor: WorkflowExecutor) -> Desk:
    assert executor._shift is not None
    return executor._shift.desk


@contextlib.contextmanager
def at_work(desk: Desk) -> Iterator[threading.Event]:
    """Keep the loop thread in a piece of work, until the event is set or the context ends."""
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(LONG_S)

    desk.post(work)
    assert begun.wait(LONG_S)
    try:
        yield over
    finally:
        over.set()


class Looks(deque[Any]):
    """Looks that wait; it says when the last was taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.taken_back = threading.Event()

    def remove(self, value: Any) -> None:
        super().remove(value)
        if not self:
            self.taken_back.set()


class Stopper:
    """Stops the loop thread before one line of the desk's, where looks wait, until they wait no more."""

    def __init__(self, desk: Desk, line: int) -> None:
        self.stopped = False
        self.looks = desk._looks = Looks()
        self._desk = desk
        self._left = line
        desk._life.thread.post(sys.settrace, self._enter)

    def remove(self) -> None:
        in_loop = threading.Event()
        self._desk._life.thread.post(sys.settrace, None)
        self._desk._life.thread.post(in_loop.set)
        assert in_loop.wait(LONG_S)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._step if frame.f_code.co_filename == desk_module.__file__ else None

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        desk = self._desk
        if event == "line" and desk._looks and not desk._worker and not self.stopped:
            self._left -= 1
            if self._left < 0:
                self.stopped = True
                self.looks.taken_back.wait(LONG_S)
        return self._step


@pytest.mark.any_loop
def test_who_answers_looks_goes_on_at_whatever_line_their_callers_take_them_back(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(Engine())
    desk = desk_of(executor)
    for line in each_step(most=100):
        stopper = Stopper(desk, line)
        with at_work(desk):
            looking = [start_blocked(desk.read, lambda core: core.budget.version) for _ in range(2)]
        assert [caller.result() for caller in looking] == [0, 0]
        stopper.remove()
        assert executor.runner.stats().state == "running"
        if not stopper.stopped:
            break
        assert stopper.looks.taken_back.is_set()
    assert line > 2, "this was to be in the middle of something"


@pytest.mark.any_loop
def test_what_the_loop_answers_is_between_two_events_though_a_finalizer_calls_the_executor_meanwhile(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(Engine())
    desk = desk_of(executor)
    seen: list[tuple[bool, bool]] = []

    class Pausing:
        def __del__(self) -> None:
            executor.pause()

    def look(core: Core) -> tuple[bool, bool]:
        before = core.scheduler.is_paused
        if not seen:
            Pausing()
        seen.append((before, core.scheduler.is_paused))
        return seen[-1]

    with at_work(desk):
        looking = start_blocked(desk.read, lambda core: look(core) if _is_loop(desk) else _tear(desk))
    assert looking.result() == (True, True)
    assert seen == [(False, True), (True, True)]


def _tear(desk: Desk) -> Any:
    """Have something done in the middle of a look, which is not answered here then."""
    desk.call(int)


def _is_loop(desk: Desk) -> bool:
    return desk._life.thread.is_current()


@pytest.mark.any_loop
def test_an_error_of_any_kind_is_none_where_something_changed_meanwhile(make_executor: MakeExecutor) -> None:
    desk = desk_of(make_executor(Engine()))
    tries: list[object] = []

    def look(core: Core) -> int:
        tries.append(core)
        if len(tries) == 1:
            _tear(desk)
            raise KeyError("torn")
        return 3

    assert desk.read(look) == 3


@pytest.mark.any_loop
def test_an_error_where_nothing_changed_is_the_looks_own(make_executor: MakeExecutor) -> None:
    desk = desk_of(make_executor(Engine()))
    with pytest.raises(ZeroDivisionError):
        desk.read(lambda core: 1 // 0)


@pytest.mark.any_loop
def test_a_glimpse_in_the_middle_of_work_is_tried_again_whatever_it_raises(
    make_executor: MakeExecutor,
) -> None:
    desk = desk_of(make_executor(Engine()))
    tries: list[float] = []

    def look(core: Core) -> int:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise KeyError("torn")
        return 3

    with at_work(desk):
        assert desk.glimpse(look, 0.0) == 3
    assert tries[2] - tries[0] > desk_module._LOOK_AGAIN_S, "what is torn is so for a moment"


@pytest.mark.any_loop
def test_a_glimpse_that_finds_all_torn_takes_the_answer_of_who_works_when_it_comes(
    make_executor: MakeExecutor,
) -> None:
    desk = desk_of(make_executor(Engine()))

    def look(core: Core) -> str:
        if _is_loop(desk):
            return "answered"
        over.set()
        raise KeyError("torn")

    with at_work(desk) as over:
        assert desk.glimpse(look, 0.0) == "answered"


@pytest.mark.any_loop
def test_a_glimpse_that_only_finds_torn_state_raises_and_leaves_nothing_behind(
    make_executor: MakeExecutor,
) -> None:
    desk = desk_of(make_executor(Engine()))
    with at_work(desk):
        with pytest.raises(ZeroDivisionError):
            desk.glimpse(lambda core: 1 // 0, 0.0)
        assert not desk._looks


@pytest.mark.any_loop
def test_what_changes_in_the_middle_of_each_look_is_left_to_the_loop_thread_at_once(
    make_executor: MakeExecutor,
) -> None:
    desk, tries = desk_of(make_executor(Engine())), list[object]()

    def look(core: Core) -> str:
        if _is_loop(desk):
            return "answered"
        tries.append(core)
        _tear(desk)
        return "torn"

    assert desk.read(look) == "answered"
    assert len(tries) <= 2, "it looks again when the loop has not answered for a while"
