"""Runners and the garbage collector: one collected while it runs, and finalizers that use one."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import acts
from acts import BOUND, SHORT, Play, Stage
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import TaskQueueFullError, UnknownTaskError
from children import RunScript
from conftest import MakeRunner
from doors import LONG_S, Blockade, Caller, Door, give, outcomes, turn_loop
from interrupts import Interruption, Rescuer, collect, each_step
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Subject:
    """A runner to which nobody else refers, what it leaves, and a task of it."""

    def __init__(self, loop_factory: LoopFactory) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

        def make_loop() -> asyncio.AbstractEventLoop:
            self.loops.append(loop_factory())
            return self.loops[0]

        runner = AsyncTaskRunner[Any](8, loop_factory=make_loop)
        runner.initialize()
        thread = runner.thread
        assert thread is not None
        self.thread = thread
        self.box = [runner]

    def assert_it_ended(self) -> None:
        self.thread.join(LONG_S)
        assert not self.thread.is_alive()
        assert self.loops[0].is_closed()


def test_a_running_runner_that_is_collected_warns_and_ends(loop_factory: LoopFactory) -> None:
    subject, door = Subject(loop_factory), Door()
    subject.box[0].submit(door.walk_through)
    door.wait_for()
    described = repr(subject.box[0])
    with pytest.warns(ResourceWarning) as warned:
        subject.box.clear()
    assert described.startswith("<AsyncTaskRunner running pending=0 running=1 ")
    assert [str(warning.message) for warning in warned] == [f"unclosed runner {described}; destroy() it"]
    assert warned[0].filename == __file__  # where it was dropped
    assert type(warned[0].source) is AsyncTaskRunner  # by which tracemalloc tells where it was made
    subject.assert_it_ended()


def test_a_runner_in_a_cycle_is_collected_too(loop_factory: LoopFactory) -> None:
    subject = Subject(loop_factory)
    subject.box[0].submit(give, 1)
    subject.box[0].me = subject.box[0]  # type: ignore[attr-defined]
    subject.box.clear()
    with pytest.warns(ResourceWarning, match="^unclosed runner"):
        gc.collect()
    subject.assert_it_ended()


def test_the_collector_is_not_kept_waiting(loop_factory: LoopFactory, log_lines: LogLines) -> None:
    subject, blockade = Subject(loop_factory), Blockade()
    subject.box[0].submit(blockade.block)
    blockade.wait_until_entered()
    with pytest.warns(ResourceWarning, match="^unclosed runner"):
        subject.box.clear()
    assert subject.thread.is_alive()
    blockade.lift()
    subject.assert_it_ended()
    assert log_lines.of("error") == [], "the thread was given up, after waiting for it"


def test_a_warning_made_an_error_does_not_keep_it_from_ending(run_script: RunScript) -> None:
    child = run_script("""
    import importlib, os
    from areal_core import AsyncTaskRunner

    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
    runner = AsyncTaskRunner(8, loop_factory=new_loop)
    runner.initialize()
    thread = runner.thread
    del runner
    thread.join(10)
    print(thread.is_alive())
    """)
    assert (child.stdout, child.returncode) == ("False\n", 0)
    first, *_, last = child.stderr.splitlines()
    assert re.match("Exception ignored in: <function [a-zA-Z]+[.]__del__ ", first)
    assert last == (
        "ResourceWarning: unclosed runner "
        "<AsyncTaskRunner running pending=0 running=0 finished=0 max_queue_size=8>; destroy() it"
    )


def test_collected_by_one_of_its_own_tasks_it_ends_all_the_same(loop_factory: LoopFactory) -> None:
    subject, door = Subject(loop_factory), Door()

    async def drop() -> None:
        await door.walk_through()
        subject.box.clear()
        gc.collect()

    def let_it_drop() -> None:
        door.open()
        subject.assert_it_ended()

    subject.box[0].submit(drop)
    with pytest.warns(ResourceWarning, match="^unclosed runner"):
        let_it_drop()


def test_a_runner_without_a_thread_is_collected_silently(loop_factory: LoopFactory) -> None:
    destroyed = AsyncTaskRunner[int](8, loop_factory=loop_factory)
    with destroyed:
        destroyed.submit(give, 1)
    subject = Subject(loop_factory)
    subject.box[0].destroy()
    new = AsyncTaskRunner[int](8, loop_factory=loop_factory)
    with pytest.raises(ValueError, match="max_queue_size"):
        AsyncTaskRunner[int](0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del destroyed, new
        subject.box.clear()
        gc.collect()


def test_a_runner_is_not_collected_while_a_thread_is_in_run(loop_factory: LoopFactory) -> None:
    subject, door = Subject(loop_factory), Door()
    runner = weakref.ref(subject.box[0])
    caller = Caller(lambda: subject.box.pop().run(door.walk_through, 7))
    door.wait_for()
    gc.collect()
    assert runner() is not None

    def let_it_return() -> None:
        door.open()
        assert caller.result() == 7

    with pytest.warns(ResourceWarning, match="^unclosed runner"):
        let_it_return()
    subject.assert_it_ended()


@pytest.mark.any_loop
def test_a_runner_that_is_collected_in_the_middle_of_a_call_of_another_ends_too(
    loop_factory: LoopFactory, make_runner: MakeRunner
) -> None:
    other = make_runner(BOUND)
    for step in each_step():
        subject = Subject(loop_factory)
        with pytest.warns(ResourceWarning, match="^unclosed runner"):
            outcome = collect_meanwhile(other, step, subject)
        subject.assert_it_ended()
        assert other.wait(1, timeout=LONG_S) == [1]
        if not outcome.tripped:
            break


def collect_meanwhile(runner: AsyncTaskRunner[Any], step: int, subject: Subject) -> Interruption:
    outcome = collect(lambda: runner.submit(give, 1), step, subject.box.clear)
    subject.box.clear()
    return outcome


# -- finalizers that the collector runs inside the library -------------------------------------------


MEANWHILE = [
    *SHORT,
    acts.wait_for_some,
    acts.wait_for_all,
    acts.wait_blocked,
    acts.claim_finished,
    acts.claim_blocked,
    acts.claim_timed_out,
    acts.iterate,
    acts.run,
]


def submit_one(stage: Stage) -> None:
    stats = stage.runner.stats()
    assert stats.submitted == stats.pending + stats.running + stats.finished + stats.collected
    stage.submit(9, give, 9)


def cancel_one(stage: Stage) -> None:
    runner = stage.runner
    resume = not runner.paused
    runner.pause()
    stage.submit(9, give, 9)
    assert runner.cancel(9)
    stage.expected[9] = "cancelled"
    if resume:
        runner.resume()


def wait_for_one(stage: Stage) -> None:
    """And make up for it: somebody else may have counted on that one."""
    try:
        stage.wait(1, timeout=0)
    except TimeoutError:
        pass
    else:
        stage.submit(9, give, 9)


@pytest.mark.any_loop
@pytest.mark.parametrize("play", MEANWHILE)
@pytest.mark.parametrize("finalizer", [submit_one, cancel_one, wait_for_one])
def test_a_finalizer_may_use_the_runner_wherever_the_collector_runs_it(
    play: Play, finalizer: Callable[[Stage], None], make_runner: MakeRunner
) -> None:
    runner = make_runner(BOUND)
    for step in each_step():
        stage = Stage(runner)
        act = play(stage)
        outcome = collect(next(act), step, lambda: finalizer(stage))  # noqa: B023 - it is called here
        try:
            with pytest.raises(StopIteration):
                act.send(outcome)
            stage.clear(twice=False)
        except BaseException as error:
            error.add_note(f"finalized at {outcome.where}")
            raise
        if not outcome.tripped:
            break


@pytest.mark.any_loop
@pytest.mark.parametrize("bound", [1, BOUND])
def test_a_finalizer_that_submits_the_same_id_or_takes_the_last_place_is_one_too_many(
    bound: int, make_runner: MakeRunner
) -> None:
    runner = make_runner(bound)
    accepted: list[int] = []

    def submit(value: int) -> None:
        with contextlib.suppress(TaskQueueFullError if bound == 1 else ValueError):
            runner.submit(give, value, task_id=value if bound == 1 else 7)
            accepted.append(value)

    for step in each_step():
        outcome = collect(lambda: submit(1), step, lambda: submit(2))
        assert len(accepted) == 1, f"finalized at {outcome.where}"
        assert runner.wait(1, timeout=LONG_S) == accepted
        accepted.clear()
        if not outcome.tripped:
            break


@pytest.mark.any_loop
def test_a_finalizer_that_waits_for_the_same_task_gets_it_or_does_not(make_runner: MakeRunner) -> None:
    runner = make_runner(BOUND)
    got: list[Any] = []

    def claim() -> None:
        with contextlib.suppress(UnknownTaskError, ValueError):
            got.append(runner.wait_for_task(2, timeout=0).data)

    for step in each_step():
        runner.submit(give, 1, task_id=1)
        runner.submit(give, 2, task_id=2)
        turn_loop(runner)
        outcome = collect(claim, step, claim)
        assert got == [2], f"finalized at {outcome.where}"
        assert runner.wait(1, timeout=LONG_S) == [1]
        got.clear()
        if not outcome.tripped:
            break


@pytest.mark.any_loop
def test_a_finalizer_that_cancels_the_same_task_changes_nothing(make_runner: MakeRunner) -> None:
    runner = make_runner(BOUND)
    answers: list[bool] = []

    def cancel() -> None:
        answers.append(runner.cancel(1))

    for step in each_step():
        runner.pause()
        runner.submit(give, 1, task_id=1)
        outcome = collect(cancel, step, cancel)
        assert set(answers) == {True}, f"finalized at {outcome.where}"
        assert [result.status for result in runner.wait(1, timeout=LONG_S, with_timing=True)] == ["cancelled"]
        runner.resume()
        if not outcome.tripped:
            break


@pytest.mark.any_loop
@pytest.mark.parametrize("count", [1, 2])
def test_wait_gives_what_it_was_asked_for_when_a_finalizer_brings_one_more(
    count: int, make_runner: MakeRunner
) -> None:
    runner = make_runner(BOUND)
    got: list[Any] = []

    def bring_one_more() -> None:
        runner.submit(give, task_id=3)
        runner.cancel(3)

    for step in each_step():
        for task_id in (1, 2):
            runner.submit(give, task_id, task_id=task_id)
        turn_loop(runner)
        runner.pause()
        outcome = collect(lambda: got.extend(runner.wait(count, timeout=LONG_S)), step, bring_one_more)
        assert got == [1, 2][:count], f"finalized at {outcome.where}"
        got.clear()
        runner.resume()
        left = outcomes(runner)
        assert left.pop(3, None) in (None, ("cancelled", None))  # None: it was not finalized in there
        assert list(left) == [1, 2][count:]
        if not outcome.tripped:
            break


@pytest.mark.any_loop
@pytest.mark.parametrize("name", ["wait", "wait_for_task", "as_completed"])
def test_what_a_finalizer_brings_is_seen_by_the_call_that_is_about_to_block_for_it(
    name: str, make_runner: MakeRunner
) -> None:
    runner = make_runner(BOUND)
    calls: dict[str, Callable[[], object]] = {
        "wait": lambda: runner.wait(1, timeout=LONG_S),
        "wait_for_task": lambda: runner.wait_for_task(1, timeout=LONG_S),
        "as_completed": lambda: next(runner.as_completed(timeout=LONG_S)),
    }
    rescued_before: list[bool] = []

    def finalize() -> None:
        runner.cancel(1)
        rescued_before.append(rescuer.came)

    for step in each_step():
        runner.pause()
        runner.submit(give, 1, task_id=1)
        with Rescuer(lambda: runner.cancel(1)) as rescuer:
            outcome = collect(calls[name], step, finalize)
        assert not rescuer.came or rescued_before in ([], [True]), f"finalized at {outcome.where}"
        rescued_before.clear()
        if not outcome.tripped:
            break
