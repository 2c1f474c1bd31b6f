"""What may start, and when a unit or a slot is free again: one law of the executor's core in each test."""

from __future__ import annotations

import math

import pytest

from areal_core._executor.rollout import Lane, Rollout
from core_audit import a_world
from core_stage import Act, Ending, Script, script
from core_world import World, running, runs, status_of, waits

pytestmark = pytest.mark.any_loop

UNACCEPTED: dict[Ending, str] = {
    "none": "rejected",
    "bad": "rejected",
    "raises": "failed",
    "filter_raises": "failed",
    "times_out": "timed_out",
    "cancels_itself": "cancelled",
}
STUBBORN = Script((Act(swallows_s=math.inf),))


def end_all(world: World, rollouts: list[Rollout], ending: Ending = "tokens") -> None:
    for rollout in rollouts:
        world.end(rollout, ending)


# -- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_as_many_units_start_as_the_batches_to_come_can_take(max_staleness: int) -> None:
    world = a_world(batch=3, max_staleness=max_staleness)
    world.submit_all([Script()] * 20)
    assert len(running(world)) == 3 * (max_staleness + 1)


def test_no_more_samples_run_than_may() -> None:
    world = a_world(batch=4, most_samples=3)
    world.submit_all([Script()] * 5)
    assert running(world) == [0, 1, 2]
    world.end(world.rollouts[1])
    assert running(world) == [0, 2, 3]


def test_no_more_is_with_the_port_than_may_be() -> None:
    world = a_world(batch=4, most_started=3)
    world.submit(Script(), is_eval=True)
    world.submit_all([Script()] * 5)
    assert running(world) == [0, 1, 2]


def test_a_new_version_starts_what_waits_in_the_same_turn() -> None:
    world = a_world()
    world.submit_all([Script()] * 8)
    end_all(world, world.rollouts[:4])
    world.caller(count=4).take()
    assert running(world) == []
    world.version = 1
    world.core.set_version(1)
    world.core.go_on()
    assert running(world) == [4, 5, 6, 7]


def test_what_was_delivered_is_charged_until_the_version_changes() -> None:
    world = a_world()
    world.submit_all([Script()] * 8)
    end_all(world, world.rollouts[:4])
    world.caller(count=2).take()
    assert running(world) == []
    world.rise()
    assert running(world) == [4, 5], "the two that wait are charged still"


def test_budget_that_was_not_used_is_forfeited() -> None:
    world = a_world()
    world.rise(2)
    world.submit_all([Script()] * 20)
    assert len(running(world)) == 4


def test_use_over_the_budget_is_forgiven_at_the_next_version() -> None:
    world = a_world()
    rows = world.row_caller([world.make(script(1.0), Lane.ROW) for _ in range(7)])
    world.clock.pass_over(1.0)
    rows.take()
    assert world.core.budget.capacity == -3
    world.submit_all([Script()] * 20)
    assert running(world) == []
    world.rise()
    assert len(running(world)) == 4


def test_a_version_that_rises_by_several_is_one_change() -> None:
    world = a_world(batch=1, max_staleness=2)
    world.submit_all([Script()] * 9)
    world.rise(2)
    assert running(world) == [0, 1, 2]
    world.rise(3)
    assert all(rollout.is_doomed for rollout in world.rollouts[:3])
    world.clock.step()
    assert set(running(world)) >= {3, 4, 5}


def test_pause_keeps_from_starting_and_delivers_all_the_same() -> None:
    world = a_world(most_samples=1)
    first, second = world.submit_all([Script()] * 2)
    world.post(world.core.pause)
    world.end(first)
    assert world.caller().take()[0].task_id == 0
    world.rise()
    assert running(world) == []
    world.post(world.core.resume)
    assert runs(second)


# -- a unit comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", UNACCEPTED)
def test_whatever_is_not_accepted_gives_its_unit_back_at_once(ending: Ending) -> None:
    world = a_world(batch=1)
    one, _other, waiting = world.submit_all([Script()] * 3)
    world.end(one, ending)
    assert status_of(one) == UNACCEPTED[ending]
    assert runs(waiting)


def test_what_is_accepted_keeps_its_unit() -> None:
    world = a_world(batch=1)
    one, _other, waiting = world.submit_all([Script()] * 3)
    world.end(one)
    assert status_of(one) == "accepted" and waits(waiting)


def test_what_is_cancelled_gives_its_unit_back_when_it_has_ended() -> None:
    world = a_world(batch=1)
    one, _other, waiting = world.submit_all([Script((Act(swallows_s=5.0),))] * 3)
    assert world.core.cancel(one.task_id) and world.core.cancel(one.task_id)
    world.clock.pass_over(5.0)
    assert status_of(one) == "cancelled" and runs(waiting)


def test_a_pending_one_that_is_cancelled_never_had_a_unit() -> None:
    world = a_world(batch=1)
    world.submit_all([Script()] * 3)
    assert world.core.cancel(2)
    world.wake()
    outcome = world.rollouts[2].outcome
    assert outcome is not None and outcome.status == "cancelled" and outcome.start_version is None
    assert world.core.budget.units == 0 and not world.core.cancel(77)


def test_what_becomes_stale_before_anybody_takes_it_gives_its_unit_back() -> None:
    world = a_world(batch=1, max_staleness=0, on_stale="drop")
    one, waiting = world.submit_all([Script()] * 2)
    world.end(one)
    assert status_of(one) == "accepted" and waits(waiting)
    world.rise()
    assert status_of(one) == "stale" and runs(waiting)


def test_what_is_stale_when_it_ends_gives_its_unit_back() -> None:
    world = a_world(batch=1, on_stale="mask")
    one = world.submit(Script())
    world.rise()
    world.stage.send_segment(world.play(one))
    world.rise()
    waiting = world.submit_all([Script()] * 2)[1]
    assert runs(one) and waits(waiting)
    world.end(one, versions=(0, 0))
    assert status_of(one) == "stale" and runs(waiting)


def test_a_doomed_one_gives_its_unit_back_at_once_and_its_slot_when_it_has_ended() -> None:
    world = a_world(batch=1, max_staleness=0, most_samples=1)
    one, waiting = world.submit_all([STUBBORN] * 2)
    world.rise()
    assert one.is_doomed and runs(one)
    assert (world.core.budget.units, world.core.budget.samples) == (1, 1)
    assert waits(waiting)
    world.stage.end(world.play(one))
    assert status_of(one) == "stale" and runs(waiting)


def test_a_doomed_one_that_swallows_the_cancel_does_not_keep_others_from_starting() -> None:
    world = a_world(batch=2, max_staleness=0)
    world.submit_all([STUBBORN] * 4)
    world.rise()
    assert running(world) == [0, 1, 2, 3]


def test_what_the_trainer_gives_back_may_start_again() -> None:
    world = a_world()
    world.submit_all([Script()] * 8)
    end_all(world, world.rollouts[:4])
    world.caller(count=3).take()
    world.core.give_back(2)
    world.wake()
    assert running(world) == [4, 5]


def test_no_more_is_given_back_than_was_delivered_at_this_version() -> None:
    world = a_world()
    world.submit_all([Script()] * 4)
    end_all(world, world.rollouts)
    on_his_way = world.caller(count=2)
    with pytest.raises(ValueError, match=r"give_back\(1\): only 0 .* at version 0"):
        world.core.give_back(1)
    on_his_way.take()
    world.core.give_back(1)
    with pytest.raises(ValueError, match=r"give_back\(2\): only 1 .* at version 0"):
        world.core.give_back(2)
    world.rise()
    with pytest.raises(ValueError, match=r"give_back\(1\): only 0 .* at version 1"):
        world.core.give_back(1)


def test_what_comes_back_after_its_caller_has_said_that_he_has_it_is_not_delivered() -> None:
    world = a_world()
    world.submit_all([Script()] * 4)
    end_all(world, world.rollouts)
    request = world.ask(count=2)
    world.read_version()
    world.handover.hand_out(request)
    assert (world.core.budget.consumed, world.core.budget.waiting) == (2, 2)
    world.post(world.core.take_back, request)
    assert (world.core.budget.consumed, world.core.budget.waiting) == (0, 4)
