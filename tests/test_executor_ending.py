"""The executor's end: every waiter is released, every outcome is there afterwards, and it begins again."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from areal_core.config import InferenceEngineConfig
from areal_core.errors import RunnerDiedError, RunnerStoppedError
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import LONG_S, Blockade, Caller, Door, break_down, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Lists,
    Playing,
    TellingEngine,
    answering,
    balance,
    counts,
    life_under,
    obeying,
    park,
    statuses_of,
    trajectory_of,
    values_of,
)
from logged import LogLines

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


async def _park(_data: Any) -> None:
    await park()


parking = Playing(_park)

WAITERS: dict[str, Callable[[WorkflowExecutor], Any]] = {
    "wait": lambda executor: executor.wait(9),
    "wait_outcomes": lambda executor: executor.wait_outcomes(9),
    "wait of evaluation": lambda executor: executor.wait_outcomes(9, is_eval=True),
    "wait_for_task": lambda executor: executor.wait_for_task(1),
    "rollout_batch": lambda executor: executor.rollout_batch([1, 2], parking),
    "prepare_batch": lambda executor: executor.prepare_batch(Lists(4), parking),
}


def begin_everything(executor: WorkflowExecutor) -> list[Caller[Any]]:
    """Have one rollout in each state, and one caller in each wait."""
    door = Door()
    executor.submit(None, Playing(door.walk_through), task_id=1)
    door.wait_for()
    executor.submit(1, answering, task_id=2)
    turn_loop(executor.runner)
    executor.pause()
    executor.submit(1, answering, task_id=3)
    executor.submit(1, answering, task_id=4, group_size=3)
    callers = [start_blocked(WAITERS[name], executor) for name in WAITERS]
    turn_loop(executor.runner)
    return callers


def test_destroy_releases_every_waiter_and_every_outcome_is_collectable_afterwards(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=4)
    callers = begin_everything(executor)
    executor.destroy()
    assert [type(caller.error()) for caller in callers] == [RunnerStoppedError] * len(callers)
    ledger = executor.ledger
    balance(ledger)
    assert (ledger.pending, ledger.running, ledger.collected) == (0, 0, 0)
    outcomes = executor.wait_outcomes(6, timeout=0)  # two rows among them; those for batches are not
    statuses = statuses_of(outcomes)
    assert {task_id: statuses[task_id] for task_id in (1, 2, 3, 4)} == {
        1: "cancelled",
        2: "accepted",
        3: "cancelled",
        4: "cancelled",
    }
    with pytest.raises(RunnerStoppedError):
        executor.wait(1)
    with pytest.raises(RunnerStoppedError):
        executor.prepare_batch(Lists(1), answering)
    for call in (lambda: executor.submit(1, answering), executor.pause, executor.resume):
        with pytest.raises(RunnerStoppedError):
            call()
    assert repr(executor).startswith("<WorkflowExecutor stopped ")
    assert log_lines.of("error") == []


def test_one_by_its_id_is_collectable_after_destroy(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)
    executor.submit(5, answering, task_id=5)
    executor.submit(6, parking, task_id=6)
    turn_loop(executor.runner)
    executor.destroy()
    assert values_of([executor.wait_for_task(5), executor.wait_for_task(6)]) == [5, None]
    with pytest.raises(RunnerStoppedError):
        executor.submit(1, answering, task_id=5)
    assert executor.cancel(99) is False


def test_initialize_begins_clean_and_counts_what_was_never_collected_as_discarded(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=4)
    for value in range(3):
        executor.submit(value, answering, task_id=value)
    executor.submit(None, parking, task_id=3)
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    executor.pause()
    executor.destroy()
    executor.initialize()
    assert not executor.is_paused()
    log_lines.wait_for("uncollected_rollouts_discarded count=3")
    assert counts(executor.ledger) == {
        "submitted": 4,
        "collected": 1,
        "discarded": 3,
        "accepted": 3,
        "cancelled": 1,
    }
    with pytest.raises(TimeoutError, match="only received 0"):
        executor.wait(1, timeout=0)
    executor.submit(7, answering, task_id=1)  # the id is free again
    assert values_of(executor.wait(1, WAIT_S)) == [7]
    balance(executor.ledger)
    assert len([line for line in log_lines.of("warning") if "discarded" in line]) == 1
    assert executor.report().delivered == 2


def test_what_nobody_fetched_is_said_at_the_end_and_can_be_fetched_still(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=8)
    for data in (1, 2, 3, None, ValueError("no")):
        executor.submit(data, obeying)
    executor.submit(4, obeying, is_eval=True)
    executor.wait(1, WAIT_S)
    finished(executor, 4, 1)
    executor.destroy()
    executor.destroy()
    lines = [line for line in log_lines if line.message.startswith("trajectories_not_collected ")]
    assert [line.level for line in lines] == ["warning"]
    assert lines[0].message == (
        "trajectories_not_collected training=2 evaluation=1 remedy=wait() and its kin give them still, "
        "until initialize() or the end of the program"
    )
    assert values_of(one for one in executor.wait(4, WAIT_S) if one is not None) == [2, 3]


def test_of_what_was_fetched_failed_or_made_ahead_of_a_batch_nothing_is_said_at_the_end(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor(consumer_batch_size=2, max_head_offpolicyness=4)
    for data in (None, ValueError("no")):
        executor.submit(data, obeying)
    executor.submit(1, obeying, task_id=1)
    executor.wait_for_task(1, WAIT_S)
    executor.rollout_batch([1, 2], answering)
    executor.submit(3, obeying, is_eval=True)
    executor.wait_outcomes(1, WAIT_S, is_eval=True)
    executor.prepare_batch(Lists(2), answering)
    while executor.ledger.accepted < 6:  # one is ahead, or more
        turn_loop(executor.runner)
    executor.destroy()
    assert not [line for line in log_lines if "not_collected" in line.message]


def test_what_became_too_old_is_not_said_to_be_uncollected(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=4, on_stale="drop")
    executor.submit(1, answering)
    finished(executor, 1)
    engine.set_version(1)
    turn_loop(executor.runner)
    assert executor.ledger.stale == 1
    executor.destroy()
    assert not [line for line in log_lines if "not_collected" in line.message]


def finished(executor: WorkflowExecutor, training: int, evaluation: int = 0) -> None:
    """Wait until so many have ended that nobody has fetched."""
    while (executor.ledger.finished, executor.eval_ledger.finished) != (training, evaluation):
        turn_loop(executor.runner)


def test_it_can_be_begun_and_ended_many_times(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(TellingEngine())
    for value in range(5):
        executor.submit(value, answering)
        assert values_of(executor.wait(1, WAIT_S)) == [value]
        executor.destroy()
        executor.destroy()
        executor.initialize()
    assert log_lines == []
    assert counts(executor.ledger) == {"submitted": 5, "collected": 5, "accepted": 5}


def test_as_a_context_manager_it_runs_inside_only(loop_factory: LoopFactory) -> None:
    with WorkflowExecutor(InferenceEngineConfig(), Engine(), loop_factory=loop_factory) as executor:
        executor.submit(1, answering)
        assert values_of(executor.wait(1, WAIT_S)) == [1]
    with pytest.raises(RunnerStoppedError):
        executor.submit(1, answering)


def test_several_threads_may_destroy_it_at_once(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)
    waiting = begin_everything(executor)
    callers = [Caller(executor.destroy) for _ in range(4)]
    for caller in callers:
        caller.result()
    assert [type(caller.error()) for caller in waiting] == [RunnerStoppedError] * len(waiting)
    assert executor.ledger.running == 0


def test_an_episode_that_swallows_its_cancellation_is_named_and_abandoned_within_the_timeout(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, door = make_executor(consumer_batch_size=4, cancel_grace=0.05), Door()
    executor.submit(trajectory_of(1), Playing(door.insist), task_id=7)
    executor.submit(trajectory_of(2), Playing(door.insist), task_id=8, group_size=2)
    door.wait_for(3)
    waiting = start_blocked(executor.wait, 2)
    executor.destroy(timeout=5.0)
    assert isinstance(waiting.error(), RunnerStoppedError)
    assert statuses_of(executor.wait_outcomes(2, timeout=0)) == {7: "cancelled", 8: "cancelled"}
    (line,) = [line for line in log_lines.of("warning") if line.startswith("tasks_abandoned")]
    assert "rollout 7 Playing" in line
    assert "rollout 8[0] Playing" in line
    assert "rollout 8[1] Playing" in line
    balance(executor.ledger)


def test_one_that_is_cancelled_and_does_not_end_frees_its_slot_when_its_grace_is_over(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=1, max_concurrent_rollouts=1, cancel_grace=0.05)
    door = Door()
    executor.submit(trajectory_of(1), Playing(door.insist), task_id=7)
    executor.submit(2, answering)
    door.wait_for()
    assert executor.cancel(7)
    outcomes = executor.wait_outcomes(2, WAIT_S)
    assert [outcome.status for outcome in outcomes] == ["cancelled", "accepted"]
    assert executor.runner.stats().abandoned == 1
    door.open()
    turn_loop(executor.runner)
    assert executor.runner.stats().abandoned == 0
    assert executor.ledger.collected == 2, "it ended twice"


def test_an_episode_that_blocks_the_thread_is_left_behind_and_the_waiters_are_released(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, blockade = make_executor(consumer_batch_size=4, leave=True), Blockade()
    executor.submit(None, Playing(blockade.block), task_id=1)
    blockade.wait_until_entered()
    executor.submit(1, answering, task_id=2)  # still on its way to the thread
    callers: list[Caller[Any]] = [
        start_blocked(executor.wait, 5),
        start_blocked(executor.wait_for_task, 1),
    ]
    assert executor.ledger.submitted == 2
    executor.destroy(timeout=0.1)
    assert [type(caller.error()) for caller in callers] == [RunnerStoppedError] * 2
    assert statuses_of(executor.wait_outcomes(2, timeout=5)) == {1: "cancelled", 2: "cancelled"}
    assert "rollout 1 Playing" in log_lines.wait_for("tasks_abandoned").message
    assert "blockade.block" not in log_lines.of("error")[0]
    balance(executor.ledger)
    thread = executor.runner.thread
    blockade.lift()
    assert thread is not None
    thread.join(LONG_S)
    assert not thread.is_alive()
    balance(executor.ledger)
    assert executor.ledger.collected == 2
    executor.initialize()
    executor.submit(3, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [3]


def test_what_had_ended_by_itself_when_the_thread_is_left_behind_is_kept(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, blockade = make_executor(consumer_batch_size=4, leave=True), Blockade()
    executor.pause()
    for number in (1, 2):
        executor.submit(number, answering, task_id=number)
    executor.submit(None, Playing(blockade.block), task_id=3)
    executor.resume()
    blockade.wait_until_entered()
    executor.destroy(timeout=0.1)
    outcomes = executor.wait_outcomes(3, timeout=5)
    assert statuses_of(outcomes) == {1: "accepted", 2: "accepted", 3: "cancelled"}
    assert [one.task_id for one in outcomes] == [1, 2, 3]
    balance(executor.ledger)
    assert "count=1 tasks=['rollout 3 Playing']" in log_lines.wait_for("tasks_abandoned").message
    thread = executor.runner.thread
    blockade.lift()
    assert thread is not None
    thread.join(LONG_S)
    balance(executor.ledger)
    assert executor.runner.stats().abandoned == 0


def test_a_group_that_ends_in_the_last_turn_of_the_loop_leaves_nothing_abandoned(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor = make_executor()

    async def play(number: int) -> Any:
        life_under(executor).thread.request_stop()
        await asyncio.sleep(0)  # until the very turn in which it stops: what joins the group comes after it
        return trajectory_of(number)

    executor.submit(1, Playing(play), group_size=2)
    life_under(executor).thread.finished.wait(WAIT_S)
    executor.destroy()
    assert executor.wait_outcomes(1, WAIT_S)[0].status in ("cancelled", "accepted")  # uvloop turns once more
    assert "abandoned" not in "".join(line.message for line in log_lines)


def test_a_death_releases_every_waiter_with_its_cause_and_loses_nothing(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)
    callers = begin_everything(executor)
    fault = OSError("a fault of the library's own")
    watching = [one for one in threading.enumerate() if one.name == "areal-core-watch"]
    break_down(executor.runner, fault)
    for caller in callers:
        error = caller.error()
        assert isinstance(error, RunnerDiedError)
        assert error.__cause__ is fault
    assert len(executor.wait_outcomes(6, timeout=0)) == 6
    with pytest.raises(RunnerDiedError):
        executor.submit(1, answering)
    for one in watching:
        one.join(LONG_S)
        assert not one.is_alive()
    executor.initialize()
    executor.submit(3, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [3]


def test_what_the_engine_subscribed_does_not_reach_an_executor_that_has_ended(
    make_executor: MakeExecutor,
) -> None:
    class Keeping(TellingEngine):
        """Forgets nobody."""

        def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
            super().subscribe(callback)
            return lambda: None

    engine = Keeping()
    executor = make_executor(engine)
    executor.submit(1, answering)
    executor.destroy()
    engine.set_version(1)
    executor.on_version_changed()
    executor.initialize()
    engine.set_version(2)
    executor.submit(1, answering)
    assert executor.wait_outcomes(1, WAIT_S)[0].start_version == 2


# -- the garbage collector ------------------------------------------------------------------------------


def test_a_running_executor_that_is_collected_warns_and_ends(loop_factory: LoopFactory) -> None:
    engine, door = TellingEngine(), Door()
    executor = WorkflowExecutor(InferenceEngineConfig(), engine, loop_factory=loop_factory)
    executor.initialize()
    executor.submit(None, Playing(door.walk_through))
    door.wait_for()
    thread, loop = executor.runner.thread, life_under(executor).thread.loop
    watching = [one for one in threading.enumerate() if one.name == "areal-core-watch"]
    box = [executor]
    del executor
    with pytest.warns(ResourceWarning, match="^unclosed runner"):
        box.clear()
    assert thread is not None
    thread.join(LONG_S)
    assert not thread.is_alive()
    assert loop.is_closed()
    assert engine.subscribers == []
    assert watching
    for one in watching:
        one.join(LONG_S)
        assert not one.is_alive()


def test_an_executor_that_was_destroyed_is_collected_silently(loop_factory: LoopFactory) -> None:
    executor = WorkflowExecutor(InferenceEngineConfig(), Engine(), loop_factory=loop_factory)
    with executor:
        executor.submit(OSError(), obeying)
    del executor
    gc.collect()
