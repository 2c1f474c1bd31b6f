"""Ctrl-C at every step of every call: each rollout is accounted for, and the executor works on.

`test_executor_process.py` sends real signals to a process, at moments nobody chooses.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from areal_core._runner import exit_hook
from areal_core.config import InferenceEngineConfig
from areal_core.errors import RunnerStoppedError
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Blockade, Door, start_blocked
from executor_acts import (
    ACTS,
    Counting,
    Play,
    Stage,
    claim_finished,
    wait_for_some,
    wait_timed_out,
    wait_while_the_version_rises,
)
from executor_tools import (
    WAIT_S,
    Engine,
    Playing,
    TellingEngine,
    answering,
    counts,
    values_of,
)
from interrupts import Rescuer, each_step, interrupt

pytestmark = pytest.mark.any_loop  # the loop is in another thread, which no signal interrupts


@pytest.mark.parametrize("play", ACTS, ids=lambda play: play.__name__)
def test_a_ctrl_c_at_any_step_loses_nothing(play: Play, make_executor: MakeExecutor) -> None:
    engine = Counting()
    executor = make_executor(engine, consumer_batch_size=10**6, max_head_offpolicyness=10**6)
    for step in each_step():
        stage = Stage(executor, engine)
        performance = play(stage)
        outcome = interrupt(next(performance), step)
        try:
            with pytest.raises(StopIteration):
                performance.send(outcome)
            stage.clear()
        except BaseException as error:
            error.add_note(f"Ctrl-C at step {step}, {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 20, "this was to interrupt something"


def test_a_second_ctrl_c_while_the_first_is_answered_loses_nothing(make_executor: MakeExecutor) -> None:
    engine = Counting()
    executor = make_executor(engine, consumer_batch_size=10**6, max_head_offpolicyness=10**6)
    plays = [wait_for_some, wait_while_the_version_rises, claim_finished, wait_timed_out]
    for play in plays:
        for first in itertools.count(0, 13):
            tripped = 2
            for second in itertools.count(first % 11, 11):
                stage = Stage(executor, engine)
                performance = play(stage)
                outcome = interrupt(next(performance), first, second)
                try:
                    with pytest.raises(StopIteration):
                        performance.send(outcome)
                    stage.clear()
                except BaseException as error:
                    error.add_note(f"Ctrl-C at steps {first} and {second}, {outcome.where}")
                    raise
                tripped = outcome.tripped
                if tripped < 2:
                    break
            if tripped < 1:
                break


def test_a_batch_interrupted_at_any_step_comes_with_the_next_call(make_executor: MakeExecutor) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=2)
    items = itertools.count()
    loader = map(list, zip(items, items, items, strict=True))  # in C: its own code is not ours to protect
    seen: list[int | None] = []
    batches: list[list[dict[str, Any]]] = []

    def call() -> None:
        batches.append(executor.prepare_batch(loader, answering))

    step, sweeps = 0, 3  # a call takes a few steps more or less, as the loop was slower or faster
    while sweeps:
        outcome = interrupt(call, step)
        step += 1
        if not outcome.tripped:
            assert step > 100
            step, sweeps = 0, sweeps - 1
        try:
            if not batches:
                call()
            (batch,) = batches
            seen += values_of(batch)
            batches.clear()
            assert seen == list(range(len(seen)))
            assert len(batch) == 2
            ledger = executor.ledger
            assert ledger.collected == len(seen), str(ledger)
            assert executor.get_capacity() == 0
        except BaseException as error:
            error.add_note(f"Ctrl-C at step {step}, {outcome.where}")
            raise
        engine.set_version(engine.version + 1)
    # What is kept going for the next batch runs, or is pending; nothing fell out of the dataloader.
    assert executor.ledger.submitted == next(items)


def test_destroy_interrupted_at_any_step_is_finished_by_the_next(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    for step in itertools.count(0, 3):
        engine = TellingEngine()
        executor = WorkflowExecutor(
            InferenceEngineConfig(consumer_batch_size=8), engine, loop_factory=loop_factory
        )
        executor.initialize()
        door = Door()
        executor.submit(1, Playing(door.walk_through), task_id=1)
        door.wait_for()
        executor.pause()
        executor.submit(2, answering, task_id=2)
        waiting = [start_blocked(executor.wait, 2), start_blocked(executor.rollout_batch, [1], answering)]
        outcome = interrupt(executor.destroy, step)
        try:
            executor.destroy()
            assert [type(caller.error()) for caller in waiting] == [RunnerStoppedError] * 2
            assert {one.status for one in executor.wait_outcomes(3, timeout=0)} == {"cancelled"}
            assert engine.subscribers == []
            thread = executor.runner.thread
            assert thread is not None
            assert not thread.is_alive()
        except BaseException as error:
            error.add_note(f"Ctrl-C at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 50


def threads_left(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that were not there *before*, after giving them time to end."""
    # One without an identity was interrupted in Thread.start, and never began.
    left = [thread for thread in threading.enumerate() if thread.ident is not None and thread not in before]
    for thread in left:
        thread.join(1.0)
    return [thread for thread in left if thread.is_alive()]


def test_initialize_interrupted_at_any_step_can_be_repeated_and_leaves_nothing(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    before = set(threading.enumerate())
    executor = WorkflowExecutor(InferenceEngineConfig(), Engine(), loop_factory=loop_factory)
    rolled_out = 0
    for step in itertools.count(0, 7):
        outcome = interrupt(executor.initialize, step)
        try:
            executor.destroy()
            executor.initialize()
            executor.submit(1, answering)
            assert values_of(executor.wait(1, WAIT_S)) == [1]
            rolled_out += 1
            executor.destroy()
            assert threads_left(before) == []
            assert not exit_hook._live, "the exit would wait for it"
            assert counts(executor.ledger) == {
                "submitted": rolled_out,
                "collected": rolled_out,
                "accepted": rolled_out,
            }
        except BaseException as error:
            error.add_note(f"Ctrl-C at {outcome.where}")
            raise
        if not outcome.tripped:
            break
    assert step > 100


def test_a_call_that_waits_for_a_blocked_loop_can_be_interrupted(make_executor: MakeExecutor) -> None:
    """And what it asked for is done all the same, once the loop goes on."""
    executor, blockade = make_executor(consumer_batch_size=4), Blockade()
    executor.submit(1, Playing(blockade.block), task_id=1)
    blockade.wait_until_entered()
    with Rescuer(lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        executor.cancel(1)
    blockade.lift()
    assert executor.wait_outcomes(1, WAIT_S)[0].status == "cancelled"
