"""When the executor's core gives up, and who gets what then: one law in each test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from areal_core._executor.requests import Want
from areal_core._executor.rollout import Lane, State
from areal_core._executor.rules import OnStale
from areal_core.errors import AdmissionStalledError, FailureBudgetError, RunnerStoppedError, UnknownTaskError
from core_audit import a_world
from core_stage import Act, Ending, Script, ScriptedError, script
from core_world import World, batch_caller, runs, status_of, waits

pytestmark = pytest.mark.any_loop


def let_end(world: World, *endings: Ending) -> None:
    """Let one rollout after the other end."""
    for ending in endings:
        world.end(world.submit(Script()), ending)


def failure_of(world: World) -> FailureBudgetError | None:
    """Return what somebody gets who waits for more than there is."""
    request = world.ask(count=100)
    if request.error is None:
        world.post(world.core.take_back, request)
        return None
    assert isinstance(request.error, FailureBudgetError)
    return request.error


# -- rollouts that bring nothing -------------------------------------------------------------------


def test_so_many_failures_in_a_row_are_enough() -> None:
    world = a_world(max_failures=3)
    let_end(world, "raises", "times_out")
    assert failure_of(world) is None
    let_end(world, "filter_raises")
    error = failure_of(world)
    assert error is not None and "max_consecutive_failures=3" in str(error)


@pytest.mark.parametrize("ending", ["tokens", "bad", "none"])
def test_an_accepted_or_a_rejected_one_ends_a_row_of_failures(ending: Ending) -> None:
    world = a_world(max_failures=2)
    let_end(world, "raises", ending, "raises")
    assert failure_of(world) is None
    let_end(world, "raises")
    assert failure_of(world) is not None


def test_one_that_somebody_cancelled_neither_counts_nor_ends_a_row() -> None:
    world = a_world(max_failures=2)
    let_end(world, "raises")
    cancelled = world.submit(Script())
    world.post(world.core.cancel, cancelled.task_id)
    world.clock.step()
    assert status_of(cancelled) == "cancelled" and failure_of(world) is None
    let_end(world, "raises")
    assert failure_of(world) is not None


def test_one_that_cancels_itself_is_a_failure_like_others() -> None:
    world = a_world(max_failures=2)
    let_end(world, "raises", "cancels_itself")
    error = failure_of(world)
    assert error is not None and [kind.split()[0] for kind in error.kinds] == [
        "ScriptedError",
        "CancelledError",
    ]


def test_a_stale_one_is_no_failure_and_does_not_end_a_row_of_them() -> None:
    world = a_world(max_failures=2, max_staleness=0, on_stale="drop")
    stale = world.submit(Script())
    let_end(world, "raises")
    world.rise()
    world.clock.step()
    assert status_of(stale) == "stale" and failure_of(world) is None
    let_end(world, "raises")
    assert failure_of(world) is not None


def test_so_many_in_a_row_that_are_not_accepted_are_enough() -> None:
    world = a_world(max_unaccepted=4, max_staleness=0, on_stale="drop")
    let_end(world, "none", "bad", "raises")
    assert failure_of(world) is None
    world.end(world.submit(Script()))  # is accepted, so that it begins anew
    world.rise()  # and that one is stale
    let_end(world, "none", "none")
    assert failure_of(world) is None
    let_end(world, "none")
    error = failure_of(world)
    assert error is not None and "max_consecutive_unaccepted=4" in str(error)


def test_the_error_tells_how_many_ended_how_and_is_caused_by_the_first() -> None:
    world = a_world(max_unaccepted=5)
    let_end(world, "raises", "none", "times_out", "raises", "raises")
    error = failure_of(world)
    assert error is not None and isinstance(error.__cause__, ScriptedError)
    assert "rollout 0" in str(error.__cause__)
    [(place, count), *others] = error.kinds.items()
    assert count == 3 and place.startswith("ScriptedError at") and "core_stage.py" in place
    assert sorted(others) == [("TimeoutError", 1), ("rejected: the workflow returned None", 1)]


def test_every_caller_gets_an_error_of_his_own_and_nothing_is_consumed() -> None:
    world = a_world(max_failures=1)
    kept = world.submit(script(1.0))
    world.clock.pass_over(1.0)
    waiting = [world.caller(count=5), world.row_caller([world.make(None, Lane.ROW)])]
    let_end(world, "raises")
    later = world.caller(count=1)
    for caller in (*waiting, later):
        assert caller.look() and isinstance(caller.error, FailureBudgetError)
    assert len({id(caller.error) for caller in (*waiting, later)}) == 3
    assert kept.state is State.FINISHED and world.ledger.collected == 0


def test_nothing_more_starts_until_the_failures_are_reset() -> None:
    world = a_world(max_failures=1)
    running = world.submit(Script())
    let_end(world, "raises")
    waiting = world.submit(Script())
    world.end(running)
    assert waits(waiting) and status_of(running) == "accepted"
    world.post(world.core.reset_failures)
    assert runs(waiting)
    assert len(world.caller(count=2).take()) == 2


def test_evaluation_neither_counts_nor_is_kept_from_anything() -> None:
    world = a_world(max_failures=1)
    world.end(world.submit(Script(), is_eval=True), "raises")
    assert failure_of(world) is None
    let_end(world, "raises")
    assert failure_of(world) is not None
    world.end(world.submit(Script(), is_eval=True))
    assert len(world.caller(count=2, is_eval=True).take()) == 2


def test_after_the_end_outcomes_are_there_however_many_failed() -> None:
    world = a_world(max_failures=1)
    let_end(world, "raises")
    world.post(world.core.end, RunnerStoppedError)
    assert [outcome.status for outcome in world.caller().take()] == ["failed"]
    assert isinstance(world.ask().error, RunnerStoppedError)


# -- a version that does not come ------------------------------------------------------------------


def a_world_at_its_limit(**rules: Any) -> World:
    """Return one all of whose units were delivered at this version, with more rollouts that wait."""
    world = a_world(**rules)
    world.submit_all([script(1.0)] * 8)
    world.clock.pass_over(1.0)
    world.caller(count=4).take()
    return world


def test_a_standstill_is_said_at_once_and_given_up_after_a_while() -> None:
    world = a_world_at_its_limit(stall_timeout_s=60.0)
    request = world.ask()
    [why] = world.told.stalls
    assert "at version 0" in why and "4 were delivered" in why
    world.clock.pass_over(59.9)
    assert not request.gate.is_open
    world.clock.pass_over(0.1)
    error = request.error
    assert isinstance(error, AdmissionStalledError)
    assert (error.limit, error.version, error.waiting, error.consumed) == (4, 0, 0, 4)
    assert len(world.told.stalls) == 1 and world.ledger.collected == 4


def test_a_standstill_may_be_short() -> None:
    world = a_world_at_its_limit(stall_timeout_s=0.5)
    request = world.ask()
    world.clock.pass_over(0.5)
    assert isinstance(request.error, AdmissionStalledError)


def test_who_is_at_a_standstill_is_told_also_behind_one_who_is_not() -> None:
    world = a_world_at_its_limit()
    world.ask(is_eval=True)
    request = world.ask()
    assert len(world.told.stalls) == 1
    world.clock.pass_over(60.0)
    assert isinstance(request.error, AdmissionStalledError)


def test_a_new_version_ends_a_standstill() -> None:
    world = a_world_at_its_limit()
    caller = world.caller()
    world.clock.pass_over(50.0)
    world.rise()
    world.clock.pass_over(50.0)
    assert caller.take()


def test_give_back_ends_a_standstill() -> None:
    world = a_world_at_its_limit()
    caller = world.caller()
    world.clock.pass_over(50.0)
    world.core.give_back(1)
    world.wake()
    world.clock.pass_over(50.0)
    assert caller.take()


def test_a_batch_of_what_others_leave_lying_about_is_a_standstill() -> None:
    world = a_world()
    world.submit_all([script(1.0)] * 4)
    world.submit_all([Script()] * 4, Lane.BATCH)
    request = world.ask_for_batch()
    world.clock.pass_over(1.0)
    assert len(world.told.stalls) == 1
    world.clock.pass_over(60.0)
    assert isinstance(request.error, AdmissionStalledError) and request.error.waiting == 4


def test_one_that_waits_to_start_is_at_a_standstill_and_a_row_is_not() -> None:
    world = a_world_at_its_limit()
    rows = world.row_caller([world.make(script(100.0), Lane.ROW)])
    by_id = world.claim(world.rollouts[5])
    assert not world.told.stalls, "the row runs"
    world.clock.pass_over(100.0)
    assert rows.take() and len(world.told.stalls) == 1
    world.clock.pass_over(60.0)
    assert isinstance(by_id.error, AdmissionStalledError)


def test_a_row_that_waits_for_a_slot_is_at_no_standstill() -> None:
    world = a_world_at_its_limit(most_started=4)
    world.submit_all([Script()] * 4, is_eval=True)
    world.row_caller([world.make(None, Lane.ROW)])
    assert not world.told.stalls


def test_it_is_no_standstill_where_one_more_may_start() -> None:
    world = a_world()
    for rollout in world.submit_all([Script()] * 3):
        world.end(rollout)
    world.ask(count=4)
    assert not world.told.stalls
    world.end(world.submit(Script()))
    assert not world.told.stalls
    world.ask()
    assert len(world.told.stalls) == 1


@pytest.mark.parametrize("what", ["paused", "something runs", "evaluation", "nobody waits"])
def test_it_is_no_standstill_when(what: str) -> None:
    world = a_world(batch=1)
    running, *_ = world.submit_all([Script()] * 4)
    if what != "something runs":
        world.end(running)
        world.end(world.rollouts[1])
        world.caller(count=2).take()
    if what == "paused":
        world.post(world.core.pause)
    if what != "nobody waits":
        world.ask(count=3, is_eval=what == "evaluation")
    world.clock.pass_over(1_000.0)
    assert not world.told.stalls


def test_a_pause_stops_the_time_of_a_standstill() -> None:
    world = a_world_at_its_limit()
    request = world.ask()
    world.clock.pass_over(59.0)
    world.post(world.core.pause)
    world.clock.pass_over(1_000.0)
    world.post(world.core.resume)
    world.clock.pass_over(59.0)
    assert not request.gate.is_open
    world.clock.pass_over(1.0)
    assert isinstance(request.error, AdmissionStalledError)


def one_in_eight_never_ends() -> Callable[[], Script]:
    counter = itertools.count(1)
    return lambda: Script((Act(math.inf if next(counter) % 8 == 0 else 1.0),))


@pytest.mark.parametrize("on_stale", ["mask", "drop", "requeue"])
@pytest.mark.parametrize("group_size", [1, 2])
def test_one_rollout_in_eight_that_never_ends_does_not_stop_the_batches(
    on_stale: OnStale, group_size: int
) -> None:
    world = a_world(batch=4, max_staleness=2, most_samples=8 * group_size, on_stale=on_stale)
    next_script = one_in_eight_never_ends()
    for _ in range(100):
        assert len(world.prepare_batch(next_script, group_size=group_size)) == 4
        world.rise()
    assert world.ledger.stale > 20 and world.clock.time() < 1_000.0


# -- claims, and the end ---------------------------------------------------------------------------


def test_a_claimed_outcome_is_for_its_claimant_only() -> None:
    world = a_world()
    one, two = world.submit_all([script(1.0)] * 2)
    claim = world.caller(Want.CLAIMED, 1, claims=[one.task_id])
    anybody = world.caller(count=2)
    world.clock.pass_over(1.0)
    assert not anybody.look() and [outcome.task_id for outcome in claim.take()] == [one.task_id]
    anybody.give_up(TimeoutError())
    assert [outcome.task_id for outcome in world.caller().take()] == [two.task_id]


def test_a_claim_that_is_given_up_leaves_the_outcome_to_others() -> None:
    world = a_world()
    one, *_ = world.submit_all([script(1.0)] * 2)
    claim = world.caller(Want.CLAIMED, 1, claims=[one.task_id])
    claim.give_up(TimeoutError())
    again = world.caller(Want.CLAIMED, 1, claims=[one.task_id])
    world.clock.pass_over(1.0)
    again.give_up(TimeoutError())
    assert {outcome.task_id for outcome in world.caller(count=2).take()} == {0, 1}


def test_a_second_claim_is_refused_and_harms_neither() -> None:
    world = a_world()
    one, two = world.submit_all([script(1.0)] * 2)
    first = world.caller(Want.CLAIMED, 1, claims=[one.task_id])
    second = world.caller(Want.CLAIMED, 2, claims=[two.task_id, one.task_id])
    assert second.look() and isinstance(second.error, ValueError)
    world.clock.pass_over(1.0)
    assert first.take() and [outcome.task_id for outcome in world.caller().take()] == [two.task_id]


def test_an_id_that_is_unknown_or_delivered_is_refused() -> None:
    world = a_world()
    rollout = world.submit(script(1.0))
    world.clock.pass_over(1.0)
    world.caller().take()
    for task_id in (rollout.task_id, 77):
        caller = world.caller(Want.CLAIMED, 1, claims=[task_id])
        assert caller.look() and isinstance(caller.error, UnknownTaskError)


def test_a_request_that_is_withdrawn_before_it_is_seen_takes_nothing() -> None:
    world = a_world()
    world.submit(script(1.0))
    world.clock.pass_over(1.0)
    world.set_busy(True)
    caller = world.caller()
    caller.give_up(KeyboardInterrupt())
    world.set_busy(False)
    assert world.caller().take()


def test_at_the_end_all_is_cancelled_and_those_who_wait_are_told() -> None:
    world = a_world(batch=1)
    waiting = [
        world.caller(count=9),
        world.caller(is_eval=True),
        world.row_caller([world.make(None, Lane.ROW)]),
        batch_caller(world, 1),
    ]
    rollouts = world.submit_all([Script()] * 4)
    world.end(rollouts[0])
    world.post(world.core.end, RunnerStoppedError)
    for caller in waiting:
        assert caller.look() and isinstance(caller.error, RunnerStoppedError)
    while world.clock.step():
        pass
    assert world.core.budget.samples == 0
    outcomes = world.caller(count=5).take()
    assert sorted(outcome.status for outcome in outcomes) == ["accepted"] + ["cancelled"] * 4
    assert isinstance(world.ask().error, RunnerStoppedError)


def test_what_is_submitted_after_the_end_is_cancelled() -> None:
    world = a_world()
    world.post(world.core.end, RunnerStoppedError)
    rollout = world.submit(Script())
    assert status_of(rollout) == "cancelled" and not world.stage.started
    assert len(world.caller().take()) == 1


def test_a_caller_who_looks_is_told_how_many_are_there() -> None:
    world = a_world()
    world.submit_all([script(1.0), Script(), script(1.0)])
    world.clock.pass_over(1.0)
    request = world.ask(count=3)
    assert request.looked.is_open and not request.gate.is_open and request.there == 2


def test_what_nobody_says_the_end_of_is_over_when_all_is() -> None:
    world = a_world()
    alone, group = world.submit(Script()), world.submit(Script(), group_size=2)
    world.post(world.core.end, lambda: RunnerStoppedError("it has ended"))
    world.core.abandon_episodes()  # their ends are not told by anybody
    assert [status_of(one) for one in (alone, group)] == ["cancelled", "cancelled"]
    assert world.core.budget.samples == 0
