"""What the core makes of being told something twice or too late, and what it says of itself."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError

import pytest

from areal_core._executor.books import RolloutLedger
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout
from areal_core.errors import FailureBudgetError
from core_audit import a_world
from core_stage import Script, script
from core_world import running, runs, status_of

pytestmark = pytest.mark.any_loop


def finished_elsewhere(count: int = 1) -> list[Rollout]:
    """Return rollouts that an earlier run finished."""
    world = a_world()
    rollouts = world.submit_all([script(1.0)] * count)
    world.clock.pass_over(1.0)
    for rollout in rollouts:
        rollout.is_submitted, rollout.is_recovered = False, True
    return rollouts


# -- twice -----------------------------------------------------------------------------------------


def test_what_is_submitted_twice_is_taken_once_and_what_was_given_up_never() -> None:
    world = a_world()
    first, given_up, last = (world.make() for _ in range(3))
    given_up.is_abandoned = True
    world.post(world.core.submit, [first])
    world.post(world.core.submit, [first, given_up, last])
    assert running(world) == [0, 2]
    assert world.ledger.submitted == 2


def test_what_is_recovered_twice_is_taken_once_and_what_was_given_up_never() -> None:
    world = a_world()
    first, given_up, last = finished_elsewhere(3)
    given_up.is_abandoned = True
    world.post(world.core.recover, [first])
    world.post(world.core.recover, [first, given_up, last])
    assert (world.ledger.submitted, world.ledger.accepted) == (2, 2)
    assert [one.task_id for one in world.caller(count=2).take()] == [0, 2]


def test_what_is_recovered_too_late_begins_anew() -> None:
    world = a_world(max_staleness=1)
    world.rise(2)
    (late,) = finished_elsewhere()
    world.post(world.core.recover, [late])
    assert runs(late) and late.outcome is None
    assert (world.ledger.submitted, world.ledger.running) == (1, 1)


def test_a_version_that_is_told_again_frees_nothing() -> None:
    world = a_world(max_staleness=0)
    for rollout in world.submit_all([Script()] * 2):
        world.end(rollout)
    world.caller(count=2).take()
    for _ in range(2):
        world.post(world.core.set_version, 0)
        assert world.core.budget.capacity == 0
    world.rise()
    assert world.core.budget.capacity == 2


def test_a_second_pause_is_none() -> None:
    world = a_world()
    world.clock.pass_over(1.0)
    world.post(world.core.pause)
    world.clock.pass_over(2.0)
    world.post(world.core.pause)
    world.clock.pass_over(3.0)
    assert world.core.paused_for_s() == 5.0


def test_a_second_end_is_none() -> None:
    world = a_world()
    before = world.core.has_ended
    world.post(world.core.end, lambda: RuntimeError("first"))
    world.post(world.core.end, lambda: RuntimeError("second"))
    assert (before, world.core.has_ended) == (False, True)
    assert str(world.ask().error) == "first"


def test_what_has_ended_keeps_nothing_from_being_lost_with_it() -> None:
    world = a_world()
    world.submit_all([Script(), script(1.0)])
    world.clock.pass_over(1.0)
    rollouts = list(world.rollouts)
    world.stage.plays.clear()
    world.post(world.core.rollouts_lost, rollouts, RuntimeError("lost"))
    assert world.ledger.lost == 1
    assert running(world) == [0]


def test_what_expires_after_what_brought_nothing_expires() -> None:
    world = a_world(max_staleness=0, on_stale="drop")
    nothing, something = world.submit_all([Script()] * 2, Lane.BATCH)
    world.ask_for_batch(3, dynamic=True)
    world.end(nothing, "raises")
    world.end(something)
    world.rise()
    assert [status_of(one) for one in (nothing, something)] == ["failed", "stale"]


def test_attempts_at_versions_that_the_trainer_went_back_behind_count_no_more() -> None:
    world = a_world(max_staleness=4)
    world.rise(3)
    attempt = world.submit(Script(), Lane.BATCH)
    world.ask_for_batch(2, dynamic=True)
    world.end(attempt, "raises")
    assert [attempt.is_charged, status_of(attempt)] == [True, "failed"]
    world.rise(-2)
    assert [attempt.is_charged, status_of(attempt)] == [False, "failed"]


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ((1,), "stale"),
        ((2, 3), "stale"),
        ((4, 2, 5), "stale"),
        ((1, 2, 4), "stale"),
        ((0, 2, 1, 3), "stale"),
        ((4, 3), "accepted"),
        ((4, 3, 5), "accepted"),
        ((4, 5), "accepted"),
    ],
)
def test_what_comes_back_after_the_trainer_went_back_behind_it_is_not_delivered(
    versions: tuple[int, ...], status: str
) -> None:
    """Nor where it has come as far again meanwhile."""
    world = a_world(max_staleness=4)
    for version in (4, 1, 3):
        world.rise(version - world.version)  # that the trainer went back before is no matter
    rollout = world.submit(Script())
    request = world.ask()
    world.end(rollout)
    assert request.rollouts == [rollout]
    for version in versions:
        world.rise(version - world.version)
    world.post(world.core.take_back, request)
    assert status_of(rollout) == status
    if status == "stale":
        assert rollout.outcome is not None
        assert rollout.outcome.reason == (
            f"started at version 3, behind which the trainer went back to {min(versions)}"
        )


@pytest.mark.parametrize("is_late", [False, True])
def test_what_was_given_before_the_trainer_went_back_and_up_again_costs_no_budget(is_late: bool) -> None:
    world = a_world()
    world.rise(3)
    rollout = world.submit(Script())
    request = world.ask()
    world.end(rollout)
    if not is_late:
        world.post(world.core.delivered, request, [])
    world.rise(-1)
    world.rise(1)
    if is_late:
        world.post(world.core.delivered, request, [])
    assert world.core.budget.consumed == 0
    world.post(world.core.take_back, request)
    assert world.core.budget.consumed == 0


def test_the_budget_knows_the_lowest_version_that_the_trainer_went_back_to_since() -> None:
    budget = a_world().core.budget
    versions = [0, *(9, 2, 5, 4, 8, 6, 7, 3, 10)]
    for version in versions[1:]:
        budget.set_version(version)
    falls = [new if new < old else None for old, new in itertools.pairwise(versions)]
    for since in range(len(versions)):
        later = [version for version in falls[since:] if version is not None]
        assert budget.fell_to(since) == min(later, default=None)


@pytest.mark.parametrize("earlier", [(), (5, 0)])
def test_what_comes_back_with_tokens_of_a_version_that_is_not_known_yet_stays(
    earlier: tuple[int, ...],
) -> None:
    """Also where the trainer went back before."""
    world = a_world()
    for version in earlier:
        world.rise(version - world.version)
    rollout = world.submit(script(versions=(1,)))
    request = world.ask()
    world.end(rollout)
    world.post(world.core.take_back, request)
    assert status_of(rollout) == "accepted"


def test_a_batch_that_comes_back_twice_comes_back_once() -> None:
    world = a_world()
    rollouts = world.submit_all([Script()] * 2, Lane.BATCH)
    capacity = world.core.budget.capacity
    request = world.ask_for_batch(2)
    for rollout in rollouts:
        world.end(rollout)
    assert request.rollouts == rollouts and not any(one.is_charged for one in rollouts)
    for _ in range(2):
        world.post(world.core.take_back, request)
        assert world.core.budget.capacity == capacity
        assert all(one.is_charged for one in rollouts)


# -- claims ----------------------------------------------------------------------------------------


def test_what_is_claimed_when_it_has_ended_is_for_nobody_else() -> None:
    world = a_world()
    ended, running_one = world.submit_all([Script()] * 2)
    world.end(ended)
    claim = world.claim(ended, running_one)
    other = world.ask()
    assert claim.there == 1 and not other.gate.is_open
    world.end(running_one)
    assert claim.rollouts == [ended, running_one] and not other.gate.is_open


def test_a_claim_knows_whether_it_is_for_evaluation_and_refers_to_nothing_once_it_is_over() -> None:
    world = a_world()
    served, given_up = (world.claim(world.submit(Script(), is_eval=is_eval)) for is_eval in (True, False))
    assert (served.is_eval, given_up.is_eval) == (True, False)
    assert len(served.claim.rollouts) == len(given_up.claim.rollouts) == 1
    world.end(world.rollouts[0])
    world.post(world.core.take_back, given_up)
    assert served.claim.rollouts == given_up.claim.rollouts == []


# -- what it says ----------------------------------------------------------------------------------


def test_cancel_says_whether_what_has_ended_ended_so() -> None:
    world = a_world()
    accepted, cancelled = world.submit_all([Script()] * 2)
    world.end(accepted)
    assert world.core.cancel(cancelled.task_id) is True
    world.clock.pass_over(1.0)
    answers = [world.core.cancel(task_id) for task_id in (accepted.task_id, cancelled.task_id, 99)]
    assert answers == [False, True, False]


def test_of_too_many_failures_it_speaks_when_there_are_so_many() -> None:
    world = a_world(max_failures=1)
    assert world.core.too_many_failures() is None
    world.end(world.submit(Script()), "raises")
    assert type(world.core.too_many_failures()) is FailureBudgetError


def test_a_ledger_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RolloutLedger().submitted = 1  # type: ignore[misc]


def test_a_request_wants_no_more_than_it_says_and_has_been_given_nothing() -> None:
    request, alike = Request(Want.BATCH, 4), Request(Want.BATCH, 4)
    assert (request.is_eval, request.dynamic, request.drops_last) == (False, False, True)
    assert (request.keep_pending, request.hunger, request.there, request.version) == (0, 0, 0, 0)
    assert not (request.is_starved or request.is_withdrawn or request.is_noted or request.is_in_hand)
    assert not request.receipt.is_delivered
    assert [request.again().is_starved, request.again(is_starved=True).is_starved] == [False, True]
    assert {request: 1}.get(alike) is None, "there may be two that want the same"
    assert not hasattr(request, "__dict__"), "there are many"


# -- hunger ----------------------------------------------------------------------------------------


def hungry(*, is_starved: bool = False) -> Request:
    return Request(Want.BATCH, 4, keep_pending=9, is_starved=is_starved)


@pytest.mark.parametrize(("pending", "hunger"), [(0, 9), (1, 8), (4, 5), (5, 0), (9, 0), (10, 0)])
def test_a_caller_is_hungry_when_half_of_what_he_keeps_pending_is_left(pending: int, hunger: int) -> None:
    world = a_world()
    world.post(world.core.pause)
    world.submit_all([Script()] * pending, Lane.BATCH)
    assert world.core.hunger_of(hungry()) == hunger


def test_nobody_is_hungry_when_all_is_over() -> None:
    world = a_world()
    world.post(world.core.end, RuntimeError)
    assert world.core.hunger_of(hungry()) == 0


def test_who_has_nothing_to_feed_is_asked_for_one_when_nothing_can_come_any_more() -> None:
    world = a_world()
    request = hungry(is_starved=True)
    world.submit(Script())
    assert world.core.hunger_of(request) == 1
    request.there = 4
    assert world.core.hunger_of(request) == 0
    request.there = 3
    world.post(world.core.pause)
    waiting = world.submit(Script(), Lane.BATCH)
    assert world.core.hunger_of(request) == 0
    world.post(world.core.resume)
    assert runs(waiting)
    assert world.core.hunger_of(request) == 0
    world.end(waiting)
    assert world.core.hunger_of(request) == 1
