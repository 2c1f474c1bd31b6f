"""How old a trajectory is, and what becomes of it then: one law of the executor's core in each test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import astuple

from areal_core._executor.freshness import Ages, ages_of, masked
from areal_core._executor.rollout import Lane, Rollout, State
from core_audit import a_world
from core_stage import Act, Script, script
from core_world import World, batch_caller, runs, status_of, waits

pytestmark = pytest.mark.any_loop


def statuses(rollouts: list[Rollout]) -> list[str]:
    return [status_of(one) if one.outcome else one.state.name for one in rollouts]


def run_to_the_end(world: World, rollouts: list[Rollout], **act: Any) -> None:
    for rollout in rollouts:
        world.end(rollout, **act)


# -- how old it is ---------------------------------------------------------------------------------


def test_the_oldest_token_decides_how_old_a_trajectory_is() -> None:
    world = a_world(version=3, max_staleness=2, on_stale="drop")
    mixed, young = world.submit_all([Script()] * 2)
    world.rise(2)
    world.end(mixed, versions=(5, 3, 5))
    world.end(young, versions=(5, 4, 5))
    assert statuses([mixed, young]) == ["accepted", "accepted"]
    world.rise()  # to 6: from 4 on
    assert statuses([mixed, young]) == ["stale", "accepted"]
    world.rise()
    assert statuses([mixed, young]) == ["stale", "stale"]


@pytest.mark.parametrize("on_stale", ["drop", "mask"])
def test_a_token_that_is_not_trained_on_has_no_age(on_stale: str) -> None:
    world = a_world(version=3, max_staleness=2, on_stale=on_stale)
    rollout = world.submit(Script())
    world.rise(2)
    world.end(rollout, versions=(3, 5, 0), loss_mask=(0, 1, 0))
    world.rise(2)
    assert status_of(rollout) == "accepted"
    world.rise()
    assert status_of(rollout) == "stale"


def test_without_a_loss_mask_every_token_with_a_version_has_an_age() -> None:
    world = a_world(version=3, max_staleness=2, on_stale="drop")
    old, young = world.submit_all([Script()] * 2)
    world.rise(2)
    world.end(old, versions=(-1, 3, 5), has_mask=False)
    world.end(young, versions=(-1, 5, 5), has_mask=False)
    world.rise()
    assert statuses([old, young]) == ["stale", "accepted"]


@pytest.mark.parametrize("on_stale", ["drop", "mask"])
def test_without_versions_a_trajectory_is_as_old_as_its_start(on_stale: str) -> None:
    world = a_world(version=3, max_staleness=2, on_stale=on_stale)
    rollout = world.submit(Script())
    world.rise(2)
    world.end(rollout, has_versions=False)
    assert rollout.outcome is not None and rollout.outcome.origin == 3
    world.rise()
    assert status_of(rollout) == "stale"


@pytest.mark.parametrize("on_stale", ["drop", "mask", "requeue"])
def test_a_token_older_than_can_be_is_a_failure_that_says_so(on_stale: str) -> None:
    world = a_world(version=5, max_staleness=2, on_stale=on_stale, max_failures=1)
    as_old_as_can_be, older = world.submit_all([Script()] * 2)
    world.end(as_old_as_can_be, versions=(3, 5))
    world.end(older, versions=(2, 5))
    assert statuses([as_old_as_can_be, older]) == ["accepted", "failed"]
    assert older.outcome is not None and isinstance(older.outcome.error, ValueError)
    for part in ("version 2", "version 5", "max_staleness is 2", "output_versions"):
        assert part in str(older.outcome.error)
    assert world.ask().error is not None, "it counts as a failure: it would go on like this for ever"


def test_a_group_is_as_old_as_the_start_of_its_first_member() -> None:
    world = a_world(most_samples=1, on_stale="drop")
    group = world.submit(Script((Act(has_versions=False),)), group_size=2)
    world.rise()
    world.end(group, member=0)  # only now there is a slot for the other
    world.end(group, member=1)
    world.clock.step()
    assert status_of(group) == "accepted" and group.start_version == 0
    world.rise()
    assert status_of(group) == "stale"


# -- the cut ---------------------------------------------------------------------------------------


def test_a_batch_is_the_oldest_then_what_started_first() -> None:
    world = a_world(version=5, batch=4, max_staleness=3)
    rollouts = world.submit_all([Script()] * 6, Lane.BATCH)
    for number, versions in ((5, (4,)), (4, (5,)), (3, (3, 9)), (1, (5,)), (2, (4,)), (0, (6,))):
        world.end(rollouts[number], versions=versions)
    batch = batch_caller(world).take()
    assert [outcome.task_id for outcome in batch] == [rollouts[number].task_id for number in (3, 2, 5, 1)]
    assert [outcome.origin for outcome in batch] == [3, 4, 4, 5]


def test_the_cut_sees_a_version_that_rises_during_it() -> None:
    world = a_world(on_stale="drop")
    first = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    world.moves_at_reads.extend([2, 0])  # when the batch was cut, and before its caller has it
    batch = world.prepare_batch(lambda: script(1.0))
    assert [outcome.origin for outcome in batch] == [2, 2]
    assert statuses(first) == ["stale", "stale"]


def test_the_cut_sees_a_trainer_that_goes_back_during_it() -> None:
    world = a_world(version=3, on_stale="drop")
    first = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    world.moves_at_reads.extend([-2, 0])
    batch = world.prepare_batch(lambda: script(1.0))
    assert [outcome.origin for outcome in batch] == [1, 1]
    assert statuses(first) == ["stale", "stale"]


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_cut_sees_a_trainer_that_went_back_before_it_is_handed_out(up: int) -> None:
    """Also where it has come as far again."""
    world = a_world(version=3, on_stale="drop")
    first = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    caller = batch_caller(world)
    world.rise(-1)
    world.rise(up)
    assert caller.look() and caller.outcomes is None
    late = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    assert [one.task_id for one in caller.take()] == [one.task_id for one in late]
    assert statuses(first) == ["stale", "stale"]


def test_the_cut_sees_a_version_that_rises_again_and_again_during_it() -> None:
    world = a_world(on_stale="mask")
    world.moves_at_reads.extend([1, 1, 1, 1])
    batch = world.prepare_batch(lambda: script(1.0))
    assert world.version == 4 and len(batch) == 2
    assert {outcome.origin for outcome in batch} <= {3, 4}


def test_what_was_cut_at_an_earlier_version_keeps_its_place_and_its_unit() -> None:
    world = a_world(max_staleness=2)
    early = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.submit_all([script(2.0)] * 4, Lane.BATCH)
    world.clock.pass_over(2.0)
    world.moves_at_reads.append(1)
    assert [one.task_id for one in batch_caller(world).take()] == [one.task_id for one in early]
    assert (world.core.budget.consumed, world.core.budget.waiting) == (2, 4)


def test_a_version_that_rises_between_cut_and_delivery_makes_no_room_for_more_than_the_limit() -> None:
    world = a_world()
    world.submit_all([Script()] * 6)
    run_to_the_end(world, world.rollouts[:2])
    caller = world.caller(count=2)
    world.rise()  # those two may still come back
    assert world.core.budget.units == 0
    assert len(caller.take()) == world.core.budget.consumed == 2


def test_a_unit_that_was_delivered_at_an_earlier_version_is_free_once_its_caller_says_that_he_has_it() -> (
    None
):
    world = a_world()
    world.submit_all([Script()] * 6)
    run_to_the_end(world, world.rollouts[:2])
    request = world.ask(count=2)
    world.rise()
    world.last_read = request.version  # he read the version just before it rose
    world.handover.hand_out(request)
    assert world.core.budget.units == 0 and len(world.stage.plays) == 4


def test_what_its_caller_gives_up_is_put_back_in_its_place() -> None:
    world = a_world()
    world.submit_all([script(1.0)] * 3)
    world.clock.pass_over(1.0)
    world.caller(count=2).give_up(KeyboardInterrupt())
    again = world.caller(count=2)
    assert [outcome.task_id for outcome in again.take()] == [0, 1]
    assert world.ledger.collected == 2


# -- on_stale --------------------------------------------------------------------------------------


def a_mixed_one(world: World, **act: Any) -> Rollout:
    """Return one that ended, with tokens of versions 0 and 2, at version 2."""
    rollout = world.submit(Script((Act(segments=0),)), Lane.BATCH)
    play = world.play(rollout)
    world.stage.send_segment(play)
    world.rise()
    world.rise()
    world.stage.send_segment(play)
    world.end(rollout, **act)
    return rollout


def test_mask_blanks_what_is_too_old_and_leaves_the_given_arrays_alone() -> None:
    world = a_world(batch=1, max_staleness=2, on_stale="mask")
    rollout = a_mixed_one(world)
    world.rise()  # to 3: from 1 on
    [outcome] = batch_caller(world).take()
    assert outcome.trajectory is not None and outcome.tokens_masked == 1
    assert outcome.trajectory["loss_mask"].tolist() == [[0, 0, 1]]
    assert outcome.trajectory["versions"].tolist() == [[-1, 0, 2]]
    assert rollout.outcome is not None and rollout.outcome.trajectory is not None
    assert rollout.outcome.trajectory["loss_mask"].tolist() == [[0, 1, 1]]


def test_mask_adds_a_loss_mask_where_there_is_none() -> None:
    world = a_world(batch=1, max_staleness=2, on_stale="mask")
    a_mixed_one(world, has_mask=False)
    world.rise()
    [outcome] = batch_caller(world).take()
    assert outcome.trajectory is not None
    assert outcome.trajectory["loss_mask"].tolist() == [[0, 0, 1]]


def test_all_of_a_batch_have_a_loss_mask_whichever_of_them_is_masked() -> None:
    world = a_world(batch=2, max_staleness=2, on_stale="mask")
    old = a_mixed_one(world, has_mask=False)
    young = world.submit(Script(), Lane.BATCH)
    world.end(young, versions=(-1, world.version, world.version), has_mask=False)
    world.rise()
    outcomes = batch_caller(world).take()
    masks = {one.task_id: one.trajectory["loss_mask"].tolist() for one in outcomes if one.trajectory}
    assert masks == {old.task_id: [[0, 0, 1]], young.task_id: [[0, 0, 1, 1]]}


def test_a_mask_of_weights_is_0_where_a_token_is_too_old_whatever_it_was() -> None:
    trajectory = {"versions": np.array([[1, 5]]), "loss_mask": np.array([[np.inf, 0.5]])}
    result, ages = masked(trajectory, 3)
    assert result["loss_mask"].tolist() == [[0.0, 0.5]]
    assert ages == Ages(5, 5, 1)
    assert trajectory["loss_mask"].tolist() == [[np.inf, 0.5]]


def test_tokens_that_no_policy_made_are_not_too_old_beside_others_that_are() -> None:
    trajectory = {"versions": np.array([[-1, -1, 1, 5]]), "loss_mask": np.array([[0, 1, 1, 1]])}
    result, ages = masked(trajectory, 3)
    assert result["loss_mask"].tolist() == [[0, 1, 0, 1]]
    assert ages == Ages(5, 5, 1)


@pytest.mark.parametrize("on_stale", ["mask", "drop", "requeue"])
def test_when_the_version_falls_what_has_to_do_with_those_above_it_is_not_trained_on(on_stale: str) -> None:
    world = a_world(version=3, max_staleness=4, max_requeues=0, on_stale=on_stale)
    early, mixed, finished, running, asking = (world.submit(Script()) for _ in range(5))
    world.end(early, versions=(3, 3, 3))
    world.rise(2)
    world.end(mixed, versions=(3, 4, 5))
    late = world.submit(Script())
    world.end(finished, versions=(3, 3, 3))
    asking.episodes[0].record.newest_version = 4
    world.rise(-2)
    world.rise(3)  # what was decided stays, and why
    assert statuses([early, mixed, finished]) == ["accepted", "stale", "accepted"]
    world.clock.step()
    world.clock.step()
    assert running.state is State.RUNNING
    for one, why in (
        (mixed, "has tokens of version 5"),
        (late, "started at version 5"),
        (asking, "asked for tokens at version 4"),
    ):
        assert one.outcome is not None and one.outcome.status == "stale"
        assert one.outcome.reason == f"{why}, behind which the trainer went back to 3"


@pytest.mark.parametrize(("on_stale", "is_eval"), [("mask", True), ("drop", True), ("keep", False)])
def test_when_the_version_falls_evaluation_and_what_may_be_of_any_age_stay(
    on_stale: str, is_eval: bool
) -> None:
    world = a_world(version=3, max_staleness=4, on_stale=on_stale)
    finished, running = (world.submit(Script(), is_eval=is_eval) for _ in range(2))
    world.end(finished, versions=(3, 3, 3))
    world.rise(-2)
    assert status_of(finished) == "accepted"
    world.end(running, versions=(3, 3, 3))
    assert status_of(running) == "accepted"


@pytest.mark.parametrize(
    ("trajectory", "ages"),
    [
        ({}, (None, None, 0)),
        ({"loss_mask": np.array([[0, 1, 0.5]])}, (None, None, 2)),
        ({"versions": np.array([[-1, -1]])}, (None, None, 0)),
        ({"versions": np.array([[-1, 3, 5]])}, (3, 5, 2)),
        ({"versions": np.array([[3, 5]]), "loss_mask": np.array([[0, 0]])}, (None, None, 0)),
        ({"versions": np.array([[-1, 5]]), "loss_mask": np.array([[1, 1]])}, (5, 5, 1)),
    ],
    ids=["neither", "a mask", "a prompt", "versions", "nothing trained", "a prompt in the mask"],
)
def test_the_ages_of_a_trajectory_are_those_of_the_tokens_that_are_trained_on(
    trajectory: dict[str, Any], ages: tuple[int | None, int | None, int]
) -> None:
    assert astuple(ages_of(trajectory)) == ages


def test_mask_leaves_what_is_young_enough_as_it_is() -> None:
    world = a_world(batch=1, max_staleness=2, on_stale="mask")
    rollout = a_mixed_one(world, has_mask=False)
    [outcome] = batch_caller(world).take()
    assert rollout.outcome is not None
    assert outcome.trajectory is rollout.outcome.trajectory and outcome.tokens_masked == 0


def test_mask_drops_what_has_no_token_left() -> None:
    world = a_world(batch=1, max_staleness=2, on_stale="mask")
    rollout = a_mixed_one(world)
    world.rise(3)  # from 3 on
    assert status_of(rollout) == "stale"
    assert rollout.outcome is not None and rollout.outcome.trajectory is None
    assert rollout.outcome.reason is not None and "version 5" in rollout.outcome.reason


def test_mask_spares_a_running_rollout_that_has_asked_for_young_tokens() -> None:
    world = a_world(on_stale="mask")
    spared, doomed = world.submit_all([Script()] * 2)
    world.rise()
    world.stage.send_segment(world.play(spared))
    world.rise()  # to 2: from 1 on, and both began at 0
    assert (spared.is_doomed, doomed.is_doomed) == (False, True)
    world.end(spared)
    assert status_of(spared) == "accepted"
    world.rise()
    assert status_of(spared) == "stale"


def test_a_spared_rollout_is_doomed_once_what_it_asked_for_is_too_old() -> None:
    world = a_world(on_stale="mask")
    rollout = world.submit(Script())
    world.rise()
    world.stage.send_segment(world.play(rollout))
    world.rise()
    assert not rollout.is_doomed
    world.rise()
    assert rollout.is_doomed


def test_mask_spares_a_group_for_the_sake_of_one_member() -> None:
    world = a_world(on_stale="mask")
    group = world.submit(Script(), group_size=2)
    world.rise()
    world.stage.send_segment(world.play(group, 1))
    world.rise()
    assert not group.is_doomed
    run_to_the_end(world, [group])
    world.end(group, member=1)
    world.clock.step()
    assert group.outcome is not None and group.outcome.trajectory is not None
    assert np.array_equal(group.outcome.trajectory["versions"], [[-1, 0, -1], [-1, 0, 1]])


@pytest.mark.parametrize("on_stale", ["drop", "requeue"])
def test_others_than_mask_doom_all_that_began_too_early(on_stale: str) -> None:
    world = a_world(on_stale=on_stale)
    rollout = world.submit(Script())
    world.rise()
    world.stage.send_segment(world.play(rollout))
    world.rise()
    assert rollout.is_doomed and rollout.episodes[0].told_to_end


def test_requeue_puts_what_was_finished_in_front_and_not_too_often() -> None:
    world = a_world(on_stale="requeue", max_requeues=2, batch=1, max_staleness=0)
    first = world.submit(Script())
    waiting = world.submit(Script())
    for times in range(1, 3):
        world.end(first)
        world.rise()
        assert (first.requeues, first.state) == (times, State.RUNNING), "before the one that waits"
        assert waits(waiting)
    world.end(first)
    world.rise()
    assert status_of(first) == "stale" and runs(waiting)
    assert world.ledger.requeued == 2


def test_requeue_runs_a_doomed_one_again_when_it_has_ended() -> None:
    world = a_world(on_stale="requeue", max_requeues=1, batch=1, max_staleness=0)
    rollout = world.submit(Script((Act(swallows_s=5.0),)))
    world.rise()
    assert rollout.is_doomed and runs(rollout)
    world.clock.pass_over(5.0)
    assert runs(rollout) and rollout.start_version == 1 and world.ledger.requeued == 1
    world.rise()
    world.clock.pass_over(5.0)
    assert status_of(rollout) == "stale"


def test_requeue_frees_the_unit_of_one_that_is_too_old_when_it_ends() -> None:
    world = a_world(version=3, max_staleness=2, on_stale="requeue", max_requeues=1)
    rollout = world.submit(Script())
    world.rise()  # to 4: from 2 on
    world.end(rollout, versions=(1, 4))
    assert runs(rollout) and rollout.start_version == 4 and world.ledger.requeued == 1
    assert world.core.budget.running == 1


def test_keep_delivers_whatever_there_is_and_dooms_nothing() -> None:
    world = a_world(on_stale="keep", max_staleness=0, batch=3)
    ended, running = world.submit_all([Script()] * 2, Lane.BATCH)
    world.end(ended)
    world.rise(7)
    assert not running.is_doomed
    world.end(running)
    old = world.submit(Script(), Lane.BATCH)
    world.end(old, versions=(0, 7))
    batch = batch_caller(world, 3).take()
    assert [outcome.origin for outcome in batch] == [0, 0, 0]
    report = world.core.tally.report()
    assert (report.staleness_max, report.tokens_masked, report.wasted_seconds) == (7, 0, 0.0)


@pytest.mark.parametrize("on_stale", ["mask", "drop", "requeue", "keep"])
def test_evaluation_has_no_age_and_costs_no_budget(on_stale: str) -> None:
    world = a_world(on_stale=on_stale, batch=1, max_staleness=0)
    ended, running = world.submit_all([Script()] * 2, is_eval=True)
    world.end(ended)
    assert world.core.budget.units == 1
    world.rise(9)
    world.end(running)
    old = world.submit(Script(), is_eval=True)
    world.end(old, versions=(0, 9))  # of a baseline, perhaps
    assert statuses([ended, running, old]) == ["accepted", "accepted", "accepted"]
    assert [one.origin for one in world.caller(count=3, is_eval=True).take()] == [0, 0, 0]
    assert world.core.budget.consumed == 0 and not world.ledger.submitted
