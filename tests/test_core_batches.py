"""What a dynamic batch counts, and what becomes of the rest: one law of the executor's core in each test."""

from __future__ import annotations

import pytest

from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout
from core_audit import a_world
from core_stage import Ending, Script
from core_world import Caller, World, batch_caller, running, runs, status_of, waits

pytestmark = pytest.mark.any_loop

ATTEMPTS: dict[Ending, str] = {
    "none": "rejected",
    "bad": "rejected",
    "raises": "failed",
    "filter_raises": "failed",
    "times_out": "timed_out",
}


def end_all(world: World, rollouts: list[Rollout], ending: Ending = "tokens") -> None:
    for rollout in rollouts:
        world.end(rollout, ending)


@pytest.mark.parametrize("ending", ATTEMPTS)
def test_an_attempt_holds_its_unit_and_counts_for_a_dynamic_batch(ending: Ending) -> None:
    world = a_world(batch=3, max_staleness=0)
    caller = batch_caller(world, dynamic=True)
    rollouts = world.submit_all([Script()] * 4, Lane.BATCH)
    end_all(world, rollouts[:2], ending)
    assert waits(rollouts[3]) and not caller.look()
    world.end(rollouts[2])
    batch = caller.take()
    assert [outcome.status for outcome in batch] == [ATTEMPTS[ending]] * 2 + ["accepted"]
    assert world.core.budget.consumed == 3


def test_what_is_cancelled_is_no_attempt() -> None:
    world = a_world(batch=2, max_staleness=0)
    caller = batch_caller(world, dynamic=True)
    one, two, three = world.submit_all([Script()] * 3, Lane.BATCH)
    world.end(one, "cancels_itself")
    assert runs(three)
    world.end(two)
    assert not caller.look()


def test_only_what_was_submitted_for_batches_is_an_attempt() -> None:
    world = a_world(batch=1, max_staleness=0)
    batch_caller(world, dynamic=True)
    one, two = world.submit_all([Script()] * 2)
    world.end(one, "raises")
    assert runs(two)


def test_an_attempt_goes_stale_like_a_trajectory() -> None:
    world = a_world(batch=2)
    batch_caller(world, dynamic=True)
    world.submit_all([Script()] * 8, Lane.BATCH)
    world.end(world.rollouts[0], "none")
    world.rise()
    assert world.core.budget.waiting == 1
    world.rise()
    assert world.core.budget.waiting == 0
    assert status_of(world.rollouts[0]) == "rejected"


def test_one_that_brings_nothing_when_it_is_too_old_is_no_attempt() -> None:
    world = a_world(batch=2, on_stale="mask")
    batch_caller(world, dynamic=True)
    spared = world.submit(Script(), Lane.BATCH)
    world.rise()
    world.stage.send_segment(world.play(spared))
    world.rise()
    world.end(spared, "none")
    assert (world.core.budget.waiting, world.core.budget.running) == (0, 0)


def test_attempts_are_free_when_batches_count_trajectories_again() -> None:
    world = a_world(batch=2)
    dynamic = batch_caller(world, dynamic=True)
    world.submit_all([Script()] * 8, Lane.BATCH)
    world.end(world.rollouts[0], "none")
    assert world.core.budget.waiting == 1
    dynamic.give_up(KeyboardInterrupt())
    batch_caller(world, dynamic=False)
    assert world.core.budget.waiting == 0 and len(running(world)) == 4


def test_attempts_that_are_put_back_later_than_that_are_free_too() -> None:
    world = a_world(batch=2)
    dynamic = batch_caller(world, dynamic=True)
    world.submit_all([Script()] * 8, Lane.BATCH)
    world.end(world.rollouts[0], "none")
    world.end(world.rollouts[1])
    assert dynamic.request.gate.is_open
    fixed = batch_caller(world, dynamic=False)
    dynamic.give_up(KeyboardInterrupt())
    world.end(world.rollouts[2])
    assert [outcome.status for outcome in fixed.take()] == ["accepted", "accepted"]


def test_as_many_attempts_as_a_batch_none_of_them_accepted_are_forgotten() -> None:
    world = a_world(batch=2, max_staleness=0)
    caller = batch_caller(world, dynamic=True)
    rollouts = world.submit_all([Script()] * 4, Lane.BATCH)
    end_all(world, rollouts[:2], "none")
    assert running(world) == [2, 3] and not caller.look()
    world.end(rollouts[2])
    world.end(rollouts[3], "raises")
    assert [outcome.task_id for outcome in caller.take()] == [2, 3]


def test_what_was_submitted_for_batches_comes_in_batches_only() -> None:
    world = a_world()
    request = Request(Want.CLAIMED, 1, claims=[0])
    rollout = world.submit(Script(), Lane.BATCH)
    anybody, by_id = world.caller(), Caller(world, request)
    world.end(rollout)
    assert not anybody.look() and by_id.look()
    assert isinstance(by_id.error, LookupError)
    assert batch_caller(world, 1).take()[0].task_id == rollout.task_id


def test_what_brought_nothing_for_a_batch_is_collected_with_the_next() -> None:
    world = a_world(batch=1)
    caller = batch_caller(world)
    one, two = world.submit_all([Script()] * 2, Lane.BATCH)
    world.end(one, "none")
    assert (world.ledger.finished, world.ledger.collected) == (1, 0)
    world.end(two)
    assert [outcome.task_id for outcome in caller.take()] == [1]
    assert (world.ledger.finished, world.ledger.collected) == (0, 2)
