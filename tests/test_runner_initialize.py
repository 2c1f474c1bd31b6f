"""initialize: the first time, again, after what failed, and what a new beginning drops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerStoppedError
from conftest import MakeRunner
from doors import LONG_S, Caller, Door, break_down, give, in_thread, running_loop, start_blocked, turn_loop
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def runner_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "areal-core-runner"]


def test_initialize_starts_one_daemon_thread_whose_loop_runs(make_runner: MakeRunner) -> None:
    before = runner_threads()
    runner = make_runner()
    new = [thread for thread in runner_threads() if thread not in before]
    assert new == [runner.thread]
    assert new[0].daemon
    assert runner.run(running_loop).is_running()
    assert not runner.exiting.is_set()
    assert runner.stats() == RunnerStats(state="running")


@pytest.mark.any_loop
def test_a_second_initialize_is_an_error_and_starts_nothing(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "value")
    thread, before = runner.thread, runner_threads()
    for call in (runner.initialize, runner.__enter__, lambda: in_thread(runner.initialize)):
        with pytest.raises(RuntimeError) as raised:
            call()
        assert type(raised.value) is RuntimeError
        assert str(raised.value) == "the runner is initialized already; destroy() it first"
    assert runner.thread is thread
    assert runner_threads() == before
    door.open()
    assert runner.wait(1, timeout=10) == ["value"]


@pytest.mark.any_loop
def test_of_many_threads_that_initialize_at_once_one_does(loop_factory: LoopFactory) -> None:
    runner, together = AsyncTaskRunner[Any](4, loop_factory=loop_factory), threading.Barrier(4)
    before = runner_threads()

    def initialize() -> str:
        together.wait()
        try:
            runner.initialize()
        except RuntimeError as error:
            return str(error)
        return "did"

    callers = [Caller(initialize) for _ in range(4)]
    said = sorted(caller.result() for caller in callers)
    assert said == ["did", *["the runner is initialized already; destroy() it first"] * 3]
    assert len(runner_threads()) == len(before) + 1
    assert runner.run(give, 1) == 1
    runner.destroy()


@pytest.mark.any_loop
def test_the_context_manager_initializes_and_destroys(loop_factory: LoopFactory) -> None:
    runner = AsyncTaskRunner[Any](4, loop_factory=loop_factory)
    with runner as entered:
        assert entered is runner
        thread = runner.thread
        assert runner.run(give, 1) == 1
        runner.submit(give, "kept")
    assert thread is not None
    assert not thread.is_alive()
    assert runner.stats().state == "stopped"
    assert runner.stats().finished == 1
    with pytest.raises(LookupError, match="not swallowed"), runner:
        raise LookupError("not swallowed")
    assert runner.stats().state == "stopped"


def test_it_starts_again_any_number_of_times_in_one_thread(make_runner: MakeRunner) -> None:
    runner = make_runner()
    loops = [runner.run(running_loop)]
    for number in range(20):
        runner.submit(give, number, task_id=1)
        assert runner.wait(1, timeout=10) == [number]
        runner.destroy()
        assert loops[-1].is_closed()
        assert runner.exiting.is_set()
        runner.initialize()
        assert not runner.exiting.is_set()
        loops.append(runner.run(running_loop))
    assert len({id(loop) for loop in loops}) == 21
    assert runner.stats() == RunnerStats(submitted=20, collected=20, state="running")


def test_a_new_beginning_runs_no_old_task_and_delivers_no_old_result(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, ran = make_runner(), Door(), []

    async def run(name: str) -> str:
        ran.append(name)
        return name

    runner.submit(run, "finished", task_id=1)
    turn_loop(runner)
    runner.submit(door.walk_through, task_id=2)
    door.wait_for()
    runner.pause()
    runner.submit(run, "pending", task_id=3)
    runner.destroy()
    assert runner.stats() == RunnerStats(submitted=3, finished=3, state="stopped")
    runner.initialize()
    assert runner.stats() == RunnerStats(submitted=3, discarded=3, state="running")
    line = log_lines.wait_for("uncollected_results_discarded")
    assert line[:2] == ("warning", "uncollected_results_discarded count=3 by=initialize")
    with pytest.raises(TimeoutError, match="only received 0"):
        runner.wait(1, timeout=0)
    with pytest.raises(LookupError):
        runner.wait_for_task(1)
    for task_id in (1, 2, 3):
        runner.submit(run, f"new {task_id}", task_id=task_id)
    assert runner.wait(3, timeout=10) == ["new 1", "new 2", "new 3"]
    assert ran == ["finished", "new 1", "new 2", "new 3"]
    assert runner.stats() == RunnerStats(submitted=6, collected=3, discarded=3, state="running")


@pytest.mark.any_loop
def test_counters_run_over_all_lives_and_the_equation_holds(make_runner: MakeRunner) -> None:
    runner = make_runner()
    for life in range(3):
        for number in range(4):
            runner.submit(give, number)
        turn_loop(runner)
        runner.wait(1, timeout=10)
        stats = runner.stats()
        assert (stats.submitted, stats.collected, stats.discarded) == (4 * life + 4, life + 1, 3 * life)
        runner.destroy()
        runner.initialize()
    assert runner.stats() == RunnerStats(submitted=12, collected=3, discarded=9, state="running")


@pytest.mark.any_loop
def test_nothing_is_said_when_nothing_was_dropped(make_runner: MakeRunner, log_lines: LogLines) -> None:
    runner = make_runner()
    runner.submit(give)
    runner.wait(1, timeout=10)
    runner.destroy()
    runner.initialize()
    turn_loop(runner)
    assert log_lines == []


@pytest.mark.any_loop
def test_it_starts_again_right_after_a_death(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    runner.submit(door.walk_through, "old", task_id=1)
    runner.submit(give, "old", task_id=2)
    door.wait_for()
    assert runner._life is not None
    old = runner.thread

    def die() -> None:
        raise OSError("broken")

    runner._life.thread.post(die)
    assert runner.exiting.wait(LONG_S)
    runner.initialize()  # the thread may still be at its shutdown
    assert runner.thread is not old
    assert old is not None
    assert not old.is_alive()
    assert not runner.exiting.is_set()
    assert runner.stats() == RunnerStats(submitted=2, discarded=2, state="running")
    runner.submit(give, "new", task_id=1)
    assert runner.wait(1, timeout=10) == ["new"]


@pytest.mark.any_loop
def test_a_waiter_of_the_former_life_is_not_served_by_the_new_one(make_runner: MakeRunner) -> None:
    runner = make_runner()
    waiter = start_blocked(runner.wait, 1)
    runner.destroy()
    runner.initialize()
    runner.submit(give, "new")
    assert type(waiter.error()) is RunnerStoppedError
    assert runner.wait(1, timeout=10) == ["new"]


# -- what fails -------------------------------------------------------------------------------------


class FailingAtFirst:
    """A loop factory that raises *error* until it is told to work."""

    def __init__(self, loop_factory: LoopFactory, error: BaseException) -> None:
        self._loop_factory = loop_factory
        self.error: BaseException | None = error

    def __call__(self) -> asyncio.AbstractEventLoop:
        if self.error is not None:
            raise self.error
        return self._loop_factory()


@pytest.mark.parametrize("error", [OSError("no loop"), SystemExit(3), KeyboardInterrupt()])
def test_what_fails_in_the_thread_is_raised_by_initialize_and_a_later_one_works(
    loop_factory: LoopFactory, error: BaseException, log_lines: LogLines
) -> None:
    factory = FailingAtFirst(loop_factory, error)
    runner, before = AsyncTaskRunner[Any](4, loop_factory=factory), runner_threads()
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            runner.initialize()
        assert raised.value is error
        assert runner_threads() == before
        assert runner.stats() == RunnerStats(state="new")
        with pytest.raises(RunnerStoppedError, match=r"^the runner was never initialized"):
            runner.submit(give)
    factory.error = None
    runner.initialize()
    assert runner.run(give, 1) == 1
    assert not runner.exiting.is_set()
    runner.destroy()
    assert log_lines == []


def test_an_initialize_that_fails_drops_nothing_of_the_former_life(
    loop_factory: LoopFactory, log_lines: LogLines
) -> None:
    factory = FailingAtFirst(loop_factory, OSError("no loop"))
    error, factory.error = factory.error, None
    runner = AsyncTaskRunner[Any](4, loop_factory=factory)
    runner.initialize()
    runner.submit(give, "kept")
    turn_loop(runner)
    runner.destroy()
    factory.error = error
    with pytest.raises(OSError, match="no loop"):
        runner.initialize()
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
    assert runner.exiting.is_set()
    assert runner.wait(1) == ["kept"]
    with pytest.raises(RunnerStoppedError, match=r"^the runner was destroyed; "):
        runner.submit(give)
    runner.destroy()
    factory.error = None
    runner.initialize()
    assert runner.run(give, 1) == 1
    runner.destroy()
    assert log_lines == []


def test_a_factory_that_gives_a_closed_loop_is_named(loop_factory: LoopFactory, log_lines: LogLines) -> None:
    loop = loop_factory()
    runner, before = AsyncTaskRunner[Any](4, loop_factory=lambda: loop), runner_threads()
    runner.initialize()
    runner.destroy()
    with pytest.raises(RuntimeError, match=r"^loop_factory gave .*, which is closed; make a new loop"):
        runner.initialize()
    assert runner_threads() == before
    assert log_lines == []


def test_a_factory_that_gives_a_running_loop_harms_no_task_on_it(
    loop_factory: LoopFactory, make_runner: MakeRunner, log_lines: LogLines
) -> None:
    other, door = make_runner(), Door()
    other.submit(door.walk_through, "unharmed")
    door.wait_for()
    loop = other.run(running_loop)
    runner = AsyncTaskRunner[Any](4, loop_factory=lambda: loop)
    with pytest.raises(RuntimeError, match=r"^loop_factory gave .*, which is running; make a new loop"):
        runner.initialize()
    door.open()
    assert other.wait(1, timeout=10) == ["unharmed"]
    assert log_lines == []


@pytest.mark.any_loop
def test_what_cannot_log_is_refused_and_nothing_is_started(loop_factory: LoopFactory) -> None:
    runner, before = AsyncTaskRunner[Any](4, loop_factory=loop_factory), runner_threads()
    with pytest.raises(TypeError, match=r"^logger=5 cannot log; "):
        runner.initialize(5)
    assert runner_threads() == before
    assert runner.stats() == RunnerStats(state="new")


@pytest.mark.any_loop
def test_initialize_on_the_loop_thread_of_the_former_life_raises(make_runner: MakeRunner) -> None:
    """It would wait for the end of the thread it is called in."""
    runner, door = make_runner(), Door()
    said: str | None = None

    async def begin_again() -> None:
        nonlocal said
        try:
            await door.walk_through()
        finally:
            try:
                runner.initialize()
            except RuntimeError as error:
                said = str(error)

    runner.submit(begin_again)
    door.wait_for()
    runner.destroy()
    assert said == (
        "initialize() on the runner's own loop thread would wait for itself for ever; "
        "call it from another thread, or await arun()"
    )


@pytest.mark.any_loop
def test_initialize_waits_for_a_destroy_under_way(make_runner: MakeRunner) -> None:
    runner, door, cleaning = make_runner(), Door(), Door()

    async def work() -> None:
        try:
            await door.walk_through()
        finally:
            await cleaning.walk_through()

    runner.submit(work)
    door.wait_for()
    ender = start_blocked(runner.destroy)
    cleaning.wait_for()
    threads = runner_threads()
    beginner = start_blocked(runner.initialize)
    assert runner_threads() == threads
    assert runner.stats().state == "stopped"
    cleaning.open()
    ender.result()
    beginner.result()
    assert runner.stats() == RunnerStats(submitted=1, discarded=1, state="running")
    break_down(runner, OSError("for the next test"))
    assert runner.stats().state == "died"


@pytest.mark.any_loop
def test_an_initialize_that_fails_is_no_exit() -> None:
    def no_loop() -> asyncio.AbstractEventLoop:
        raise OSError("none left")

    runner = AsyncTaskRunner[Any](1, loop_factory=no_loop)
    with pytest.raises(OSError, match="none left"):
        runner.initialize()
    assert not runner.exiting.is_set()
    assert runner.stats().state == "new"
