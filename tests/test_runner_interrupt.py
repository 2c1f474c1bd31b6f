"""Ctrl-C inside the library: whatever it interrupts, every task is accounted for and the runner works on.

The first tests interrupt each act at every step it takes, and once more while it answers that. The last ones
send real signals to a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from acts import BOUND, LONG, SHORT, Play, Stage
from areal_core._runner import exit_hook
from areal_core._runner.ledger import Ledger
from areal_core._runner.lifecycle import life_of
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import RunnerStoppedError
from children import StartScript, say_that_no_more_come, without_slow_callbacks
from conftest import MakeRunner
from doors import LONG_S, Blockade, Caller, give, start_blocked
from interrupts import Rescuer, each_step, interrupt

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def perform(play: Play, runner: AsyncTaskRunner[int], *gaps: int) -> int:
    """Let one call be interrupted, account for everything, and return how many signals there were."""
    stage = Stage(runner)
    act = play(stage)
    outcome = interrupt(next(act), *gaps)
    try:
        with pytest.raises(StopIteration):
            act.send(outcome)
        stage.clear(outcome.noticed > 1)
    except BaseException as error:
        error.add_note(f"Ctrl-C at {outcome.where}")
        raise
    return outcome.tripped


@pytest.mark.parametrize("play", SHORT + LONG)
def test_a_ctrl_c_at_any_step_loses_nothing(play: Play, make_runner: MakeRunner) -> None:
    runner = make_runner(BOUND)
    for step in each_step():
        if perform(play, runner, step) < 1:
            break
    assert step > 10, "this was to interrupt something"


@pytest.mark.any_loop
@pytest.mark.parametrize("play", SHORT + LONG)
def test_a_second_ctrl_c_while_the_first_is_answered_loses_nothing(
    play: Play, make_runner: MakeRunner
) -> None:
    # All pairs of the long ones, with a stride of 1, take three minutes.
    stride = 101 if play in LONG else 1
    runner = make_runner(BOUND)
    for first in each_step():
        tripped = 2
        for second in itertools.count(first % stride, stride):
            tripped = perform(play, runner, first, second)
            if tripped < 2:
                break
        if tripped < 1:
            break
    assert first > 10, "this was to interrupt something"


def threads_left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that were not there *before*, after giving them time to end."""
    # One without an identity was interrupted in Thread.start, and never began.
    left = [thread for thread in threading.enumerate() if thread.ident is not None and thread not in before]
    for thread in left:
        thread.join(1.0)
    return [thread for thread in left if thread.is_alive()]


def test_destroy_interrupted_at_any_step_is_finished_by_the_next(loop_factory: LoopFactory) -> None:
    before = set(threading.enumerate())
    for step in each_step():
        runner = AsyncTaskRunner[int](BOUND, loop_factory=loop_factory)
        runner.initialize()
        stage = Stage(runner)
        stage.finished(1)
        stage.running(2)
        stage.pending(3)
        waiting: list[Caller[Any]] = [
            start_blocked(runner.wait, 4),
            start_blocked(runner.wait_for_task, 2),
            start_blocked(runner.run, stage.door.walk_through),
        ]
        outcome = interrupt(runner.destroy, step)
        try:
            runner.destroy()
            assert [type(caller.error()) for caller in waiting] == [RunnerStoppedError] * 3
            assert runner.exiting.wait(5.0)
            assert threads_left(before) == []
            stage.expected |= {2: "cancelled", 3: "cancelled"}
            stage.wait(3, timeout=0)
            stage.check()
        except BaseException as error:
            error.add_note(f"Ctrl-C at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 100


@pytest.mark.parametrize(("timeout", "stride"), [(60, 1), (0, 29)])
def test_destroy_interrupted_at_any_step_does_not_keep_the_next_from_giving_up_a_blocked_thread(
    loop_factory: LoopFactory, timeout: float, stride: int
) -> None:
    """The second case takes its many steps where it describes the stack: each gives the same."""
    for step in itertools.count(0, stride):
        runner, blockade = AsyncTaskRunner[int](BOUND, loop_factory=loop_factory), Blockade()
        runner.initialize()
        runner.submit(blockade.block, 1)
        blockade.wait_until_entered()
        with Rescuer(blockade.lift):
            outcome = interrupt(partial(runner.destroy, timeout), step)
        runner.destroy(timeout=0)
        stats = runner.stats()
        assert (stats.running, stats.finished) == (0, 1), f"Ctrl-C at {outcome.where}"
        blockade.lift()
        assert runner.thread is not None
        runner.thread.join(LONG_S)
        assert not runner.thread.is_alive(), f"Ctrl-C at {outcome.where}"
        if not outcome.tripped:
            break
    assert step > 50


@contextlib.contextmanager
def pressed_after(moment: Callable[[], bool]) -> Iterator[None]:
    """Press Ctrl-C from when *moment* has returned, and until one is noticed."""
    interrupted: list[bool] = []
    over = threading.Event()

    def interrupt_once(*_: object) -> None:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    def press_until_it_is_noticed() -> None:
        assert moment()
        # One that comes just before the main thread blocks is noticed when it wakes, by Python's design.
        while not interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(0.01)

    handler = signal.signal(signal.SIGINT, interrupt_once)
    presser = threading.Thread(target=press_until_it_is_noticed)
    presser.start()
    try:
        yield
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, handler)


def test_a_ctrl_c_while_submit_waits_for_another_thread_is_raised_and_nothing_is_accepted(
    make_runner: MakeRunner,
) -> None:
    runner, entered = make_runner(), threading.Event()
    lock = life_of(runner).ledger._lock
    released = threading.Event()

    def hold() -> None:
        with lock:
            entered.set()
            assert released.wait(LONG_S)

    holder, me = threading.Thread(target=hold), threading.get_ident()
    holder.start()
    assert entered.wait(LONG_S)

    def accepting() -> bool:
        while sys._current_frames()[me].f_code is not Ledger.accept.__code__:
            threading.Event().wait(0.001)
        return True

    with pytest.raises(KeyboardInterrupt), pressed_after(accepting):
        runner.submit(give, 1)
    released.set()
    holder.join()
    assert runner.stats().submitted == 0
    runner.submit(give, 2)
    assert runner.wait(1) == [2]


def test_a_ctrl_c_while_destroy_waits_for_the_thread_does_not_make_that_look_dead(
    make_runner: MakeRunner,
) -> None:
    """On 3.11 a Thread.join that is interrupted takes the thread for ended."""
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block, 7)
    blockade.wait_until_entered()
    thread = runner.thread
    assert thread is not None
    with pytest.raises(KeyboardInterrupt), pressed_after(lambda: runner.exiting.wait(LONG_S)):
        runner.destroy()
    assert thread.is_alive()
    assert runner.stats().running == 1
    blockade.lift()
    runner.destroy()
    assert not thread.is_alive()
    assert runner.wait(1) == [7]  # it ended by itself, before the loop came to the end


def test_initialize_interrupted_at_any_step_leaves_no_thread_and_can_be_repeated(
    loop_factory: LoopFactory,
) -> None:
    before = set(threading.enumerate())
    for step in each_step():
        runner = AsyncTaskRunner[int](BOUND, loop_factory=loop_factory)
        outcome = interrupt(runner.initialize, step)
        try:
            if runner.stats().state == "new":
                assert threads_left(before) == []
                runner.initialize()
            assert_it_works(runner)
            runner.destroy()
            assert threads_left(before) == []
            assert not exit_hook._live, "the exit would wait for it"
        except BaseException as error:
            error.add_note(f"Ctrl-C at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 100


def test_initialize_interrupted_at_any_step_keeps_the_counts_of_the_life_before(
    loop_factory: LoopFactory,
) -> None:
    threads = set(threading.enumerate())
    runner = AsyncTaskRunner[int](BOUND, loop_factory=loop_factory)
    runner.initialize()
    for step in each_step():
        before = runner.stats()
        runner.submit(give, 1)
        runner.destroy()
        outcome = interrupt(runner.initialize, step)
        try:
            if runner.stats().state == "stopped":
                assert threads_left(threads) == []
                assert runner.stats().submitted == before.submitted + 1
                runner.initialize()
            after = runner.stats()
            assert (after.submitted, after.finished) == (before.submitted + 1, 0)
            assert (after.collected, after.discarded) == (before.collected, before.discarded + 1)
            assert_it_works(runner)
        except BaseException as error:
            error.add_note(f"Ctrl-C at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 100
    runner.destroy()


def assert_it_works(runner: AsyncTaskRunner[int]) -> None:
    runner.submit(give, 7)
    assert runner.wait(1, timeout=5.0) == [7]


# -- a process and its signals ----------------------------------------------------------------------

ROUNDS = """
    import asyncio, importlib, itertools, json, logging, os, random, signal, sys
    import areal_core
    from areal_core import AsyncTaskRunner

    logging.getLogger("areal_core").addHandler(logging.NullHandler())  # failed tasks are no news here
    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
    runner = AsyncTaskRunner(64, loop_factory=new_loop)
    runner.initialize()
    ids, chance = itertools.count(), random.Random(7)
    submitted, told_to_end, surely_cancelled, got = [], set(), set(), []
    interrupts, library = 0, os.path.dirname(areal_core.__file__)

    async def work(task_id):
        await asyncio.sleep(task_id % 4 * 0.0005)
        if task_id % 5 == 0:
            raise ValueError
        return task_id

    # No signal is noticed between the return of a call into the library and the end of its line.

    def submit():
        for task_id in itertools.islice(ids, 8):
            submitted.append(runner.submit(work, task_id, task_id=task_id))

    def wait():
        submit()
        got.extend(runner.wait(3, timeout=5, with_timing=True))

    def wait_too_short():
        try:
            got.extend(runner.wait(64, timeout=0.0001, with_timing=True))
        except TimeoutError:
            pass

    def wait_for_task():
        try:
            got.append(runner.wait_for_task(submitted[-2], timeout=5))
        except LookupError:
            pass

    def iterate():
        for result in runner.as_completed():
            got.append(result)

    def cancel():
        told_to_end.add(submitted[-1])
        if runner.cancel(submitted[-1]):
            surely_cancelled.add(submitted[-1])

    def pause():
        runner.pause()
        submit()
        told_to_end.add(submitted[-1])
        runner.cancel(submitted[-1])
        runner.resume()

    def run():
        assert runner.run(work, 6) == 6

    CALLS = [wait, wait_too_short, wait_for_task, iterate, cancel, pause, run]

    def play_a_round():
        runner.resume()
        iterate()
        submit()
        for call in chance.sample(CALLS, 4):
            call()

    def account():
        runner.resume()
        iterate()
        balance = runner.stats()
        assert runner.run(asyncio.sleep, 0, "alive") == "alive"
        runner.destroy()
        statuses = {result.task_id: result.status for result in got}
        own = lambda task_id: "completed" if task_id % 5 else "failed"
        print(json.dumps({
            "interrupts": interrupts,
            "twice": len(got) - len(statuses),
            "lost": sorted(set(submitted) - set(statuses)),
            "uncounted": balance.submitted - len(statuses),
            "uncollected": balance.submitted - balance.collected,
            "wrong": [
                (task_id, status) for task_id, status in statuses.items()
                if status != own(task_id) and (status != "cancelled" or task_id not in told_to_end)
            ],
            "not cancelled": [task_id for task_id in surely_cancelled if statuses[task_id] != "cancelled"],
            "alive": runner.thread.is_alive(),
        }))
"""

ALL_IS_WELL = {
    "twice": 0,
    "lost": [],
    "uncounted": 0,
    "uncollected": 0,
    "wrong": [],
    "not cancelled": [],
    "alive": False,
}


def test_three_hundred_ctrl_cs_leave_every_task_accounted_for(start_script: StartScript) -> None:
    child = start_script(
        ROUNDS
        + """
    while interrupts < 300:
        try:
            os.write(1, b".")  # the next one may come
            while True:
                play_a_round()
        except KeyboardInterrupt:
            interrupts += 1
    account()
    """
    )
    assert child.stdout is not None
    for _ in range(300):
        assert child.stdout.read(1) == "."
        child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=20)
    assert (without_slow_callbacks(stderr), child.returncode) == ("", 0)
    assert json.loads(stdout) == {"interrupts": 300, **ALL_IS_WELL}


def test_ctrl_cs_that_interrupt_each_other_leave_every_task_accounted_for(start_script: StartScript) -> None:
    """A program cannot survive that in its own code, so here only the library is interrupted."""
    child = start_script(
        ROUNDS
        + """
    def interrupt_the_library(signum, frame):
        while frame is not None:
            if frame.f_code.co_filename.startswith(library):
                raise KeyboardInterrupt
            frame = frame.f_back

    signal.signal(signal.SIGINT, interrupt_the_library)
    while interrupts < 300:
        os.write(1, b".")  # some more may come
        try:
            play_a_round()
        except KeyboardInterrupt:
            interrupts += 1
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: one that is pending would be an error
    os.write(1, b"!")
    os.read(0, 1)  # none comes from here on: after the end of Python it would kill the process
    account()
    """
    )
    assert child.stdout is not None
    burst = itertools.cycle(range(1, 30))
    while child.stdout.read(1) == ".":
        for _ in range(next(burst)):
            os.kill(child.pid, signal.SIGINT)
    say_that_no_more_come(child)
    stdout = child.stdout.read()  # not communicate(): what is in the buffer already would be lost to it
    _, stderr = child.communicate(timeout=20)
    assert (without_slow_callbacks(stderr), child.returncode) == ("", 0)
    assert json.loads(stdout) == {"interrupts": 300, **ALL_IS_WELL}
