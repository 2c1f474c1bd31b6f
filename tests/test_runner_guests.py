"""Guests: others whose jobs run on a runner's loop, and who are told of its end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from time import monotonic_ns
from typing import Any

import pytest

from areal_core._runner.ending import Ending
from areal_core._runner.guest import Guest
from areal_core._runner.job import Job
from areal_core._runner.lifecycle import life_of
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats
from areal_core.errors import RunnerStoppedError
from conftest import MakeRunner
from doors import (
    LONG_S,
    Blockade,
    Door,
    begun_at_once,
    break_down,
    give,
    running_loop,
    start_blocked,
    turn_loop,
    use_task_class,
)
from logged import LogLines

STOPPED = "the runner was destroyed; initialize() starts it again"


class Lodger(Guest):
    """A guest that writes down what it is told, and when."""

    def __init__(self, runner: AsyncTaskRunner[Any]) -> None:
        self.noted: list[str] = []
        self._jobs: list[Job] = []
        self._thread = life_of(runner).thread
        self.launcher = life_of(runner).host(self)

    def start(self, *calls: Callable[..., Any]) -> list[Job]:
        """Start one job for each of *calls*, with ids from 1 on."""
        jobs = [Job(number, fn, (), {}, contextvars.Context(), None) for number, fn in enumerate(calls, 1)]
        self.took(jobs)
        self._thread.post(self.launcher.launch, jobs)
        return jobs

    def took(self, jobs: Sequence[Job]) -> None:
        self._jobs += jobs

    def cancel(self, job: Job) -> None:
        job.decision = "cancelled"
        self._thread.post(self.launcher.cancel, job)

    def publish(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            self.noted.append("nothing")
        for job in jobs:
            if job in self._jobs:
                self._jobs.remove(job)
                self.noted.append(f"{job.task_id} {job.status}")

    def begin_end(self, ending: Ending) -> None:
        self.noted.append(str(ending.error()))
        for job in self._jobs:
            job.decision = job.decision or "cancelled"

    def finish_end(self) -> None:
        for job in self._jobs:
            job.end(monotonic_ns())
        self._jobs.clear()
        self.noted.append("over")

    def jobs(self) -> Iterable[Job]:
        return list(self._jobs)


def test_its_jobs_run_on_the_loop_and_are_in_nobodys_books_but_its(make_runner: MakeRunner) -> None:
    runner, loops = make_runner(), list[asyncio.AbstractEventLoop]()
    guest = Lodger(runner)

    async def note_loop() -> None:
        loops.append(asyncio.get_running_loop())

    guest.start(give, note_loop)
    turn_loop(runner)
    assert guest.noted == ["1 completed", "2 completed"]
    assert loops == [runner.run(running_loop)]
    assert runner.stats() == RunnerStats(state="running")


def test_a_job_whose_outcome_is_decided_before_its_start_is_not_started_and_ends(
    make_runner: MakeRunner,
) -> None:
    runner, ran = make_runner(), list[int]()
    guest = Lodger(runner)

    async def note() -> None:
        ran.append(1)

    def decide_between() -> None:
        _, job = guest.start(give, note)  # what the loop does comes after this callback
        job.decision = "cancelled"

    life_of(runner).thread.post(decide_between)
    turn_loop(runner, 3)
    assert sorted(guest.noted) == ["1 completed", "2 cancelled"]
    assert ran == []


@pytest.mark.parametrize("is_ours", [True, False], ids=["our start", "their task factory"])
def test_a_job_that_nothing_can_start_fails_and_leaves_no_coroutine(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    runner, kept, real = make_runner(), list[Coroutine[Any, Any, Any]](), asyncio.Task
    guest = Lodger(runner)

    def refuse(coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
        kept.append(coroutine)
        if len(kept) == 1:
            raise MemoryError("no task")
        return real(coroutine, **options)

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        return refuse(coroutine, loop=loop, **options)

    def start() -> None:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            if is_ours:
                patched.setattr(asyncio, "Task", refuse)
            else:
                loop.set_task_factory(factory)
            guest.launcher.launch(jobs)
            loop.set_task_factory(None)

    jobs = [Job(number, give, (), {}, contextvars.Context(), None) for number in (1, 2, 3)]
    guest.took(jobs)
    life_of(runner).thread.post(start)
    turn_loop(runner, 3)
    assert sorted(guest.noted) == ["1 failed", "2 completed", "3 completed"]
    assert str(jobs[0].error) == "no task"
    assert [inspect.getcoroutinestate(one) for one in kept] == [inspect.CORO_CLOSED] * 3


def test_a_job_that_it_cancels_has_the_runners_grace_and_counts_as_abandoned_then(
    make_runner: MakeRunner,
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    guest = Lodger(runner)
    [job] = guest.start(door.insist)
    door.wait_for()
    guest.cancel(job)
    door.wait_for()
    turn_loop(runner)
    assert guest.noted == ["1 cancelled"]
    assert runner.stats().abandoned == 1
    door.open()
    turn_loop(runner)
    assert runner.stats().abandoned == 0


@pytest.mark.parametrize("task_class", [None, begun_at_once], ids=["our start", "their task factory"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_job_that_is_cancelled_in_its_first_step_is_told_once_and_soon(
    make_runner: MakeRunner, task_class: Any, nested: bool
) -> None:
    """From Python 3.12 on that step may be over before anybody knows the task."""
    runner, told = make_runner(), list[int]()
    guest = Lodger(runner)

    def cancel() -> None:
        first = next(job for job in guest.jobs() if job.task_id == 1)
        first.decision = "cancelled"
        guest.launcher.cancel(first)

    async def cancel_the_other() -> None:
        cancel()

    async def be_cancelled() -> None:
        if nested:
            guest.launcher.launch(second)
        else:
            cancel()
        try:
            await asyncio.sleep(LONG_S)
        finally:
            told.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

    runner.run(use_task_class, task_class)
    second = [Job(2, cancel_the_other, (), {}, contextvars.Context(), None)]
    guest.took(second if nested else [])
    guest.start(be_cancelled)
    turn_loop(runner)
    assert sorted(guest.noted) == ["1 cancelled", "2 completed"][: 1 + nested]
    assert told == [1]


def test_of_destroy_it_is_told_before_its_jobs_are_and_when_nothing_works_any_more(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door = make_runner(cancel_grace=0), Door()
    guest = Lodger(runner)

    async def give_in() -> None:
        try:
            await door.walk_through()
        finally:
            guest.noted.append("1 is told")

    guest.start(give_in, door.insist, give)
    door.wait_for(2)
    turn_loop(runner)
    runner.destroy()
    assert guest.noted == ["3 completed", STOPPED, "1 is told", "1 cancelled", "over"]
    assert [line.message for line in log_lines] == ["tasks_abandoned count=1 tasks=['2 Door.insist']"]
    assert runner.stats() == RunnerStats(abandoned=1, state="stopped")


def test_what_ends_in_the_turn_in_which_the_loop_stops_is_published_before(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    guest = Lodger(runner)

    async def end_one_turn_later() -> None:
        await asyncio.sleep(0)

    guest.start(blockade.block, end_one_turn_later)
    blockade.wait_until_entered()
    ender = start_blocked(runner.destroy)  # the loop stops in the very next turn
    blockade.lift()
    ender.result()
    assert guest.noted == ["1 completed", "2 completed", STOPPED, "over"]


@pytest.mark.any_loop
def test_where_nothing_has_ended_it_is_not_told_so(make_runner: MakeRunner) -> None:
    """An executor takes what it is told of as the moment to start what waits."""
    runner = make_runner()
    guest = Lodger(runner)
    runner.destroy()
    assert guest.noted == [STOPPED, "over"]


@pytest.mark.any_loop
def test_of_a_death_it_is_told_the_cause(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()
    guest = Lodger(runner)
    guest.start(door.walk_through)
    door.wait_for()
    break_down(runner, OSError("broken"))
    died = "the runner died: OSError('broken'); initialize() starts it again"
    assert guest.noted == [died, "1 cancelled", "over"]


@pytest.mark.any_loop
def test_nobody_is_a_guest_of_a_runner_that_ended(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.destroy()
    with pytest.raises(RunnerStoppedError, match=f"^{STOPPED}$".replace("()", r"\(\)")):
        Lodger(runner)


def test_where_the_thread_is_blocked_it_is_told_by_another_and_its_jobs_are_named_and_counted(
    make_runner: MakeRunner, log_lines: LogLines
) -> None:
    runner, door, blockade = make_runner(leave=True), Door(), Blockade()
    guests = [Lodger(runner), Lodger(runner)]
    runner.submit(door.walk_through, task_id=9)
    guests[0].start(door.walk_through)
    door.wait_for(2)
    guests[1].start(blockade.block)
    blockade.wait_until_entered()
    runner.destroy(timeout=0.02)
    assert [guest.noted for guest in guests] == [[STOPPED, "over"]] * 2
    names = ["9 Door.walk_through", "1 Door.walk_through", "1 Blockade.block"]
    assert log_lines.of("warning") == [f"tasks_abandoned count=3 tasks={names}"]
    assert runner.stats().abandoned == 3
    said = len(log_lines)
    blockade.lift()
    assert runner.thread is not None
    runner.thread.join(LONG_S)
    assert runner.stats().abandoned == 0
    assert [guest.noted for guest in guests] == [[STOPPED, "over"] * 2] * 2
    assert len(log_lines) == said
