"""Submitting to an executor, and waiting for what comes: the basics, and what is refused."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest

import areal_core
from areal_core import workflow_context
from areal_core.errors import UnknownTaskError
from areal_core.staleness_manager import StalenessManager
from conftest import MakeExecutor
from doors import Door, give, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Playing,
    accept_even,
    answering,
    counts,
    obeying,
    statuses_of,
    trajectory_of,
    value_of,
    values_of,
)

FIRST_OWN_ID = 2**48


def test_what_is_submitted_comes_out_of_wait_in_the_order_it_ended(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    late = executor.submit(trajectory_of(1), Playing(door.walk_through))
    door.wait_for()
    executor.submit(2, answering)
    executor.submit(None, obeying)
    turn_loop(executor.runner)
    door.open()
    assert values_of(executor.wait(3, WAIT_S)) == [2, None, 1]
    assert late >= FIRST_OWN_ID
    assert counts(executor.ledger) == {"submitted": 3, "collected": 3, "accepted": 2, "rejected": 1}


def test_an_outcome_tells_how_it_ended(make_executor: MakeExecutor) -> None:
    executor, error = make_executor(Engine(3), consumer_batch_size=8), ValueError("it is broken")
    executor.submit({"data_id": "sum-7"}, Playing(lambda data: give(trajectory_of(7, versions=3))))
    executor.submit(None, obeying, task_id=5)
    executor.submit(error, obeying, task_id=6)
    executor.submit(1, answering, should_accept_fn=accept_even, task_id=7)
    by_id = {outcome.task_id: outcome for outcome in executor.wait_outcomes(4, WAIT_S)}
    rejected, failed, filtered = by_id.pop(5), by_id.pop(6), by_id.pop(7)
    (accepted,) = by_id.values()
    assert (accepted.status, value_of(accepted.trajectory), accepted.data_id) == ("accepted", 7, "sum-7")
    assert (accepted.start_version, accepted.origin, accepted.error, accepted.reason) == (3, 3, None, None)
    assert accepted.create_time <= accepted.finish_time
    assert (rejected.status, rejected.trajectory, rejected.reason) == (
        "rejected",
        None,
        "the workflow returned None",
    )
    assert (failed.status, failed.error, failed.trajectory) == ("failed", error, None)
    assert error.__traceback__ is not None
    assert (filtered.status, filtered.reason) == ("rejected", "should_accept_fn said no")
    assert filtered.trajectory is None


def test_a_wait_that_times_out_says_what_there_is_and_consumes_nothing(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(1, answering)
    executor.submit(trajectory_of(2), Playing(door.walk_through), task_id=2)
    door.wait_for()
    turn_loop(executor.runner)
    with pytest.raises(TimeoutError, match=r"^Timed out waiting for 2 results, only received 1\.$"):
        executor.wait(2, timeout=0)
    assert executor.wait(2, timeout=0.01, raise_timeout=False) == []
    with pytest.raises(TimeoutError):
        executor.wait_for_task(2, timeout=0)
    assert executor.wait_for_task(2, timeout=0, raise_timeout=False) is None
    assert counts(executor.ledger) == {"submitted": 2, "running": 1, "finished": 1, "accepted": 1}
    door.open()
    assert values_of(executor.wait(2, WAIT_S)) == [1, 2]


def test_a_poll_sees_what_ended_before_it(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    executor.submit(1, answering)
    turn_loop(executor.runner)
    assert values_of(executor.wait(1, timeout=0)) == [1]


def test_a_wait_for_more_than_there_are_goes_on_until_others_submit_them(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    executor.submit(1, answering)
    waiting = start_blocked(executor.wait, 2)
    executor.submit(2, answering)
    assert values_of(waiting.result()) == [1, 2]


def test_wait_for_task_claims_its_rollout_and_wait_never_takes_it(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(7), Playing(door.walk_through), task_id=7)
    door.wait_for()
    claiming = start_blocked(executor.wait_for_task, 7)
    turn_loop(executor.runner)
    with pytest.raises(ValueError, match="task_id=7 is claimed by another"):
        executor.wait_for_task(7, timeout=0)
    waiting = start_blocked(executor.wait, 1)
    door.open()
    assert value_of(claiming.result()) == 7
    assert not waiting.is_done()
    executor.submit(8, answering)
    assert values_of(waiting.result()) == [8]


def test_one_who_waited_before_the_claim_does_not_get_it_either(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(7), Playing(door.walk_through), task_id=7)
    door.wait_for()
    waiting = start_blocked(executor.wait, 1)
    claiming = start_blocked(executor.wait_for_task, 7)
    turn_loop(executor.runner)
    door.open()
    assert value_of(claiming.result()) == 7
    executor.submit(8, answering)
    assert values_of(waiting.result()) == [8]


def test_a_claim_that_timed_out_is_released_and_its_result_keeps_its_place(
    make_executor: MakeExecutor,
) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), task_id=1)
    door.wait_for()
    executor.wait_for_task(1, timeout=0, raise_timeout=False)
    door.open()
    turn_loop(executor.runner)
    executor.submit(2, answering)
    assert values_of(executor.wait(2, WAIT_S)) == [1, 2]


@pytest.mark.any_loop
def test_a_claim_is_released_before_the_next_call_of_the_same_thread_is_looked_at(
    make_executor: MakeExecutor,
) -> None:
    """Also when the loop was too busy to look at any of them."""

    class Slow(StalenessManager):
        def on_rollout_enqueued(self) -> None:
            entered.set()
            assert go_on.wait(WAIT_S)

    entered, go_on = threading.Event(), threading.Event()
    executor = make_executor(manager=Slow(Engine(), None, 8, 0))
    executor.submit(7, answering, task_id=7)
    assert entered.wait(WAIT_S)  # in the middle of the executor's own work
    with pytest.raises(TimeoutError):
        executor.wait_for_task(7, timeout=0)
    claiming = start_blocked(executor.wait_for_task, 7)
    go_on.set()
    assert value_of(claiming.result()) == 7


def test_a_rollout_that_was_not_accepted_gives_none_by_its_id(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    executor.submit(None, obeying, task_id=0)
    executor.submit(OSError(), obeying, task_id=1)
    assert executor.wait_for_task(0, WAIT_S) is None
    assert executor.wait_for_task(1, WAIT_S) is None


def test_an_id_that_was_never_submitted_or_is_delivered_is_unknown(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    with pytest.raises(UnknownTaskError, match="task_id=7"):
        executor.wait_for_task(7)
    executor.submit(1, answering, task_id=7)
    executor.wait(1, WAIT_S)
    with pytest.raises(UnknownTaskError, match="task_id=7"):
        executor.wait_for_task(7)
    assert not executor.cancel(7)


def test_an_id_in_use_is_refused_and_the_first_is_unharmed(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through), task_id=7)
    with pytest.raises(ValueError, match="task_id=7 is in use"):
        executor.submit(2, answering, task_id=7)
    door.open()
    turn_loop(executor.runner)
    with pytest.raises(ValueError, match="task_id=7 is in use"):  # it has ended, and is not collected
        executor.submit(2, answering, task_id=7)
    assert values_of(executor.wait(1, WAIT_S)) == [1]
    executor.submit(3, answering, task_id=7)
    assert value_of(executor.wait_for_task(7, WAIT_S)) == 3
    executor.submit(4, answering, task_id=7, is_eval=True)
    assert value_of(executor.wait_for_task(7, WAIT_S)) == 4


def test_an_id_of_ones_own_never_meets_one_that_was_made_up(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=100)
    own = [executor.submit(1, answering, task_id=task_id) for task_id in (0, 1, 2**48 - 1)]
    made_up = [executor.submit(1, answering) for _ in range(3)]
    assert own == [0, 1, 2**48 - 1]
    assert min(made_up) > max(own)
    assert sorted(statuses_of(executor.wait_outcomes(6, WAIT_S))) == sorted(own + made_up)


def test_a_cancelled_rollout_ends_as_cancelled_pending_or_running(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=1), Door()
    executor.submit(None, Playing(door.walk_through), task_id=1)
    executor.submit(None, Playing(door.walk_through), task_id=2)
    door.wait_for()
    assert counts(executor.ledger) == {"submitted": 2, "pending": 1, "running": 1}
    assert executor.cancel(2)
    assert executor.cancel(1)
    assert executor.cancel(1)
    outcomes = executor.wait_outcomes(2, WAIT_S)
    assert [(outcome.task_id, outcome.status) for outcome in outcomes] == [(2, "cancelled"), (1, "cancelled")]
    assert all(isinstance(outcome.error, asyncio.CancelledError) for outcome in outcomes)
    assert outcomes[0].create_time == outcomes[0].finish_time
    assert outcomes[0].start_version is None
    assert executor.get_capacity() == 1
    executor.submit(3, answering, task_id=3)
    turn_loop(executor.runner)
    assert not executor.cancel(3)
    assert not executor.cancel(99)


def test_a_rollout_that_cancels_itself_in_its_first_step_is_cancelled(make_executor: MakeExecutor) -> None:
    executor, ended = make_executor(), list[str]()

    async def cancel_itself(task_id: int) -> None:
        assert executor.cancel(task_id)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            ended.append("told")
            raise

    executor.submit(7, Playing(cancel_itself), task_id=7)
    (outcome,) = executor.wait_outcomes(1, WAIT_S / 2)
    assert (outcome.task_id, outcome.status, ended) == (7, "cancelled", ["told"])


def test_what_was_delivered_under_a_chosen_id_is_not_kept(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    executor.submit(1, answering, task_id=7)
    (trajectory,) = executor.wait(1, WAIT_S)
    assert trajectory is not None
    tokens = weakref.ref(trajectory["input_ids"])
    del trajectory
    turn_loop(executor.runner)
    gc.collect()
    assert tokens() is None


# -- what a workflow finds around itself -----------------------------------------------------------

_colour = contextvars.ContextVar("_colour", default="none")


async def _surroundings(_data: Any) -> Any:
    context = workflow_context.get()
    found.append((context.task_id, context.is_eval, context.sample_idx, workflow_context.stat_scope()))
    colours.append(_colour.get())
    _colour.set("changed")


found: list[Any] = []
colours: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_found() -> None:
    found.clear()
    colours.clear()


def test_a_workflow_finds_its_id_its_place_in_the_group_and_its_scope(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    executor.submit(1, Playing(_surroundings), task_id=1)
    executor.submit(1, Playing(_surroundings), task_id=2, is_eval=True)
    executor.submit(1, Playing(_surroundings), task_id=3, group_size=2)
    executor.wait(2, WAIT_S)
    executor.wait_for_task(2, WAIT_S)
    assert sorted(found, key=str) == [
        (1, False, None, "rollout"),
        (2, True, None, "eval-rollout"),
        (3, False, 0, "rollout"),
        (3, False, 1, "rollout"),
    ]


def test_the_callers_context_variables_reach_each_episode_in_a_copy_of_its_own(
    make_executor: MakeExecutor,
) -> None:
    executor, workflow = make_executor(consumer_batch_size=8), Playing(_surroundings)

    def call() -> None:
        _colour.set("red")
        executor.submit(1, workflow)
        executor.submit(1, workflow, group_size=2)
        _colour.set("blue")
        executor.rollout_batch([1], workflow)
        executor.wait(2, WAIT_S)
        assert _colour.get() == "blue"

    contextvars.copy_context().run(call)
    executor.submit(1, workflow)
    executor.wait(1, WAIT_S)
    assert sorted(colours) == ["blue", "none", "red", "red", "red"]


def test_a_workflow_is_given_the_engine_and_the_data(make_executor: MakeExecutor) -> None:
    class Looking(Playing):
        async def arun_episode(self, engine: Any, data: Any) -> Any:
            seen.append((engine, data))

    seen: list[Any] = []
    engine, data = Engine(), object()
    executor = make_executor(engine)
    executor.submit(data, Looking(obeying.arun_episode))  # type: ignore[arg-type]
    executor.wait(1, WAIT_S)
    assert seen == [(engine, data)]


def test_a_workflow_may_submit_cancel_and_look(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)
    seen: list[Any] = []

    async def act(_data: Any) -> Any:
        executor.submit(2, answering, task_id=2)
        executor.pause()
        executor.submit(3, answering, task_id=3)
        seen.append((executor.cancel(3), executor.cancel(4), executor.ledger.submitted))
        executor.resume()
        return trajectory_of(1)

    executor.submit(None, Playing(act), task_id=1)
    assert statuses_of(executor.wait_outcomes(3, WAIT_S)) == {1: "accepted", 2: "accepted", 3: "cancelled"}
    assert seen == [(True, False, 3)]


def test_the_facade_has_the_executors_names() -> None:
    from areal_core import offload, staleness_manager, workflow_executor

    assert areal_core.WorkflowExecutor is workflow_executor.WorkflowExecutor
    assert areal_core.RolloutLedger is workflow_executor.RolloutLedger
    assert areal_core.RolloutOutcome is workflow_executor.RolloutOutcome
    assert areal_core.StalenessReport is workflow_executor.StalenessReport
    assert areal_core.StalenessManager is staleness_manager.StalenessManager
    assert areal_core.RolloutStat is staleness_manager.RolloutStat
    assert areal_core.offloaded is offload.offloaded


def test_an_episode_starts_though_there_is_always_something_to_do(make_executor: MakeExecutor) -> None:
    """As where a caller submits without a pause, and faster than it is dealt with."""
    executor, started, left = make_executor(), threading.Event(), 20_000

    async def start(_: object) -> Any:
        started.set()
        return trajectory_of(1)

    def one_more() -> None:
        nonlocal left
        left -= 1
        if left and not started.is_set():
            desk.post(one_more)

    assert executor._shift is not None
    desk = executor._shift.desk
    executor.submit(None, Playing(start))
    desk.post(one_more)
    assert values_of(executor.wait(1, WAIT_S)) == [1]
    assert left > 0
