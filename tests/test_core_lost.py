"""Rollouts that are lost with their workers: one law of the executor's core in each test."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import pytest

from areal_core._executor.journaling import Journaling
from areal_core._executor.requests import Want
from areal_core._executor.rollout import Lane, Rollout
from areal_core.errors import WorkerLostError
from core_audit import a_world
from core_stage import Act, Script, script
from core_world import World, running, runs, status_of, waits

pytestmark = pytest.mark.any_loop

STUBBORN = Script((Act(swallows_s=math.inf),))


def lose(
    world: World, *rollouts: Rollout, why: str = "its process ended", unbegun: Collection[Rollout] = ()
) -> WorkerLostError:
    """Let what runs of *rollouts* be lost; return the error of what is lost too often."""
    error = WorkerLostError(why)
    for play in [one for one in world.stage.plays.values() if one.episode.rollout in rollouts]:
        for timer in play.timers:
            timer.cancel()
        del world.stage.plays[play.episode]
    world.post(world.core.rollouts_lost, rollouts, error, unbegun)
    return error


def begun(world: World, rollout: Rollout) -> int:
    """Return how often *rollout* has begun."""
    return world.told.began_in_order.count(rollout)


# -- again -----------------------------------------------------------------------------------------


def test_what_is_lost_runs_again_in_the_same_turn_and_is_counted() -> None:
    world = a_world()
    lost, other = world.submit_all([Script()] * 2)
    lose(world, lost)
    assert runs(lost) and begun(world, lost) == 2 and begun(world, other) == 1
    assert (world.ledger.lost, world.ledger.requeued, lost.losses, lost.requeues) == (1, 0, 1, 0)
    world.end(lost)
    assert status_of(lost) == "accepted" and world.ledger.lost == 1


def test_it_runs_again_at_the_version_of_its_new_start() -> None:
    world = a_world(max_staleness=1)
    (lost,) = world.submit_all([Script()])
    world.rise()
    assert lost.start_version == 0
    lose(world, lost)
    assert lost.start_version == 1
    world.rise()
    assert runs(lost) and not lost.is_doomed, "0 would be too old"
    world.end(lost)
    assert lost.outcome is not None and (lost.outcome.start_version, lost.outcome.origin) == (1, 1)


def test_what_is_lost_comes_before_what_waits_the_oldest_first() -> None:
    world = a_world(batch=2, max_staleness=1, most_samples=3)
    first, second, third, *_ = world.submit_all([Script()] * 6)
    world.post(world.core.pause)
    lose(world, second, third, first)
    world.post(world.core.resume)
    assert running(world) == [first.task_id, second.task_id, third.task_id]
    assert waits(world.rollouts[3])


def test_nothing_of_its_first_life_is_left() -> None:
    world = a_world()
    group = world.submit(Script(), group_size=3)
    world.end(group, member=0)
    world.stage.send_segment(world.play(group, 1))
    lose(world, group)
    assert len(group.episodes) == 3 and not any(one.is_over or one.verdict for one in group.episodes)
    assert [one.record.segments for one in group.episodes] == [1, 1, 1]
    for member in range(3):
        world.end(group, member=member)
    world.clock.step()
    assert status_of(group) == "accepted"
    assert group.outcome is not None and group.outcome.trajectory is not None
    assert len(group.outcome.trajectory["input_ids"]) == 3


def test_a_group_of_which_members_wait_for_slots_begins_anew_as_a_whole() -> None:
    world = a_world(most_samples=2)
    group = world.submit(Script(), group_size=3)
    world.end(group, member=0)
    assert [one.sample_idx for one in world.stage.plays] == [1, 2]
    lose(world, group)
    assert [one.sample_idx for one in world.stage.plays] == [0, 1]
    assert begun(world, group) == 2 and world.core.budget.samples == 2


def test_a_group_is_lost_with_its_judge() -> None:
    world = a_world()
    group = world.submit(Script(judge=Act(segments=0)), group_size=2)
    for member in range(2):
        world.end(group, member=member)
    assert [one.sample_idx for one in world.stage.plays] == [-1]
    lose(world, group)
    assert [one.sample_idx for one in world.stage.plays] == [0, 1] and group.judge is None


def test_what_a_pause_holds_back_is_lost_once_and_begins_at_its_end() -> None:
    world = a_world()
    (lost,) = world.submit_all([Script()])
    world.post(world.core.pause)
    lose(world, lost)
    lose(world, lost)
    assert waits(lost) and (lost.losses, world.ledger.lost) == (1, 1)
    world.post(world.core.resume)
    assert runs(lost)


@pytest.mark.parametrize("lane", [Lane.ROW, Lane.BATCH, Lane.OPEN])
def test_whoever_waits_for_it_gets_it(lane: Lane) -> None:
    world = a_world(batch=1)
    lost = world.make(Script(), lane)
    if lane is Lane.ROW:
        caller = world.row_caller([lost])
    elif lane is Lane.BATCH:
        world.post(world.core.submit, [lost])
        caller = world.caller(Want.BATCH, 1, keep_pending=-1)
    else:
        world.post(world.core.submit, [lost])
        caller = world.caller()
    lose(world, lost)
    world.end(lost)
    assert [one.task_id for one in caller.take()] == [lost.task_id]


def test_evaluation_is_run_again_as_well() -> None:
    world = a_world()
    lost = world.submit(Script(), is_eval=True)
    lose(world, lost)
    assert runs(lost) and (world.eval_ledger.lost, world.ledger.lost) == (1, 0)
    assert world.core.budget.eval_samples == 1


def test_its_unit_is_free_for_itself() -> None:
    world = a_world(batch=1, max_staleness=0)
    lost, other = world.submit_all([Script()] * 2)
    lose(world, lost)
    assert runs(lost) and waits(other) and world.core.budget.running == 1


def test_a_journal_is_given_its_data_once(directory: Path) -> None:
    world, journaling = a_world(), Journaling(directory, None, None)
    journaling.open()
    try:
        world.core.tell_also(journaling)
        lost = world.make(Script(), Lane.BATCH)
        lost.key = "0:1"
        world.post(world.core.submit, [lost])
        lose(world, lost)
        assert runs(lost) and journaling.writer._put == 1
    finally:
        journaling.close()


# -- too often -------------------------------------------------------------------------------------


def test_one_that_is_lost_too_often_fails_with_the_last_reason() -> None:
    world = a_world(max_losses=2)
    (lost,) = world.submit_all([Script()])
    for why in ("first", "second"):
        lose(world, lost, why=why)
        assert runs(lost)
    error = lose(world, lost, why="third")
    assert status_of(lost) == "failed" and lost.outcome is not None and lost.outcome.error is error
    assert (lost.losses, world.ledger.lost, world.ledger.failed) == (3, 2, 1)
    assert world.core.budget.samples == world.core.budget.running == 0


def test_a_group_that_is_lost_too_often_fails_also_if_its_last_member_had_timed_out() -> None:
    world = a_world(max_losses=0)
    group = world.submit(Script(), group_size=2, keep_rest=True)
    world.end(group, "times_out", member=1)
    error = lose(world, group)
    assert status_of(group) == "failed" and group.outcome is not None and group.outcome.error is error


def test_a_group_that_fails_so_waits_for_slots_no_more() -> None:
    world = a_world(most_samples=2, max_losses=0)
    group, other = world.submit(Script(), group_size=3), world.submit(Script())
    lose(world, group)
    assert status_of(group) == "failed" and running(world) == [other.task_id]
    world.end(other)
    assert status_of(other) == "accepted" and world.core.budget.samples == 0


def test_with_no_loss_allowed_the_first_one_fails_it() -> None:
    world = a_world(max_losses=0)
    (lost,) = world.submit_all([Script()])
    lose(world, lost)
    assert status_of(lost) == "failed" and begun(world, lost) == 1


def test_what_had_not_begun_there_may_be_lost_as_often_as_it_likes_and_keeps_its_turn() -> None:
    world = a_world(batch=2, max_staleness=1, most_samples=2, max_losses=1)
    first, second, third = world.submit_all([Script()] * 3)
    for _ in range(3):
        lose(world, first, second, unbegun=[first])
        assert runs(first)
    assert (first.losses, status_of(second), second.losses) == (0, "failed", 2)
    assert runs(third) and world.ledger.lost == 4
    world.end(first)
    assert status_of(first) == "accepted"


def test_being_too_old_and_being_lost_are_counted_apart() -> None:
    world = a_world(max_staleness=0, on_stale="requeue", max_requeues=1, max_losses=1)
    (lost,) = world.submit_all([Script()])
    lose(world, lost)
    world.rise()
    world.clock.step()
    assert runs(lost) and (lost.losses, lost.requeues) == (1, 1)
    world.rise()
    world.clock.step()
    assert status_of(lost) == "stale"
    assert (world.ledger.lost, world.ledger.requeued) == (1, 1)


# -- what was ending -------------------------------------------------------------------------------


def test_one_that_was_told_to_end_is_cancelled_when_it_is_lost() -> None:
    world = a_world(max_losses=0)
    (lost,) = world.submit_all([STUBBORN])
    world.post(world.core.cancel, lost.task_id)
    lose(world, lost)
    assert status_of(lost) == "cancelled" and world.ledger.lost == 0


def test_one_that_could_bring_only_what_is_too_old_is_stale_when_it_is_lost() -> None:
    world = a_world(max_staleness=0, on_stale="drop")
    (lost,) = world.submit_all([STUBBORN])
    world.rise()
    assert lost.is_doomed
    lose(world, lost)
    assert status_of(lost) == "stale" and world.ledger.lost == 0


def test_one_that_was_too_old_and_is_to_run_again_does_so_when_it_is_lost() -> None:
    world = a_world(max_staleness=0, on_stale="requeue", max_requeues=1)
    (lost,) = world.submit_all([STUBBORN])
    world.rise()
    lose(world, lost)
    assert runs(lost) and lost.start_version == 1
    assert (lost.requeues, world.ledger.requeued, world.ledger.lost) == (1, 1, 0)


def test_a_group_whose_member_had_failed_fails_with_that_when_the_rest_is_lost() -> None:
    world = a_world(max_losses=0)
    group = world.submit(STUBBORN, group_size=2)
    world.end(group, "raises")
    lose(world, group)
    assert status_of(group) == "failed" and group.outcome is not None
    assert str(group.outcome.error) == "rollout 0, by its script"


def test_what_has_ended_or_waits_is_not_lost() -> None:
    world = a_world(most_samples=2)
    ended, running_one, waiting = world.submit_all([script(1.0), Script(), Script()])
    world.clock.pass_over(1.0)
    world.submit(Script())
    last = world.rollouts[-1]
    assert runs(running_one) and runs(waiting) and waits(last)
    lose(world, ended, last)
    assert status_of(ended) == "accepted" and waits(last)
    assert world.ledger.lost == 0 and (ended.losses, last.losses) == (0, 0)


def test_when_all_has_ended_what_is_lost_is_cancelled() -> None:
    world = a_world()
    lost = world.submit(STUBBORN)
    world.post(world.core.end, RuntimeError)
    assert runs(lost)
    lose(world, lost)
    assert status_of(lost) == "cancelled"
