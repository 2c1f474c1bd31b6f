"""Groups, rows and evaluation: one law of the executor's core in each test."""

from __future__ import annotations

import pytest

from areal_core._executor.rollout import Lane, Rollout
from core_audit import a_world
from core_stage import Act, Ending, Script, script
from core_world import World, running, runs, status_of, waits

pytestmark = pytest.mark.any_loop


# -- rows of rollout_batch -------------------------------------------------------------------------


def test_rows_jump_the_queue_and_need_slots_only() -> None:
    world = a_world(batch=1, max_staleness=0, most_samples=2)
    world.submit_all([Script()] * 3)
    rows = [world.make(None, Lane.ROW) for _ in range(2)]
    world.row_caller(rows)
    assert running(world) == [0, 3], "there is no unit for another, and one slot"
    world.end(world.rollouts[0])
    assert running(world) == [3, 4]


def test_rows_are_charged_when_they_are_delivered() -> None:
    world = a_world()
    rows = world.row_caller([world.make(script(1.0), Lane.ROW), world.make(script(1.0, "none"), Lane.ROW)])
    world.clock.pass_over(1.0)
    assert [outcome.status for outcome in rows.take()] == ["accepted", "rejected"]
    assert (world.core.budget.consumed, world.core.budget.waiting) == (1, 0)


def test_rows_come_in_their_order_and_to_nobody_else() -> None:
    world = a_world()
    rollouts = [world.make(script(seconds), Lane.ROW) for seconds in (3.0, 1.0, 2.0)]
    rows = world.row_caller(rollouts)
    other = world.caller()
    world.clock.pass_over(2.0)
    assert not other.look() and not rows.look()
    world.clock.pass_over(1.0)
    assert [outcome.task_id for outcome in rows.take()] == [0, 1, 2]


def test_rows_whose_caller_has_given_up_are_for_whoever_waits() -> None:
    world = a_world()
    rollouts = [world.make(script(seconds), Lane.ROW) for seconds in (1.0, 2.0)]
    rows = world.row_caller(rollouts)
    world.clock.pass_over(1.0)
    rows.give_up(KeyboardInterrupt())
    world.clock.pass_over(1.0)
    assert [outcome.task_id for outcome in world.caller(count=2).take()] == [0, 1]
    assert world.core.budget.consumed == 2


@pytest.mark.parametrize("on_stale", ["mask", "drop"])
def test_a_row_that_became_stale_is_run_again_but_not_for_ever(on_stale: str) -> None:
    world = a_world(max_staleness=0, on_stale=on_stale, max_requeues=1)
    fast, slow = rows = [world.make(None, Lane.ROW) for _ in range(2)]
    caller = world.row_caller(rows)
    world.end(fast)
    world.rise()
    assert fast.requeues == 1 and fast.start_version == 1, "it had ended"
    world.clock.step()
    assert slow.requeues == 1 and slow.start_version == 1, "it ran"
    world.end(fast)
    world.rise()
    world.clock.step()
    assert [outcome.status for outcome in caller.take()] == ["stale", "stale"]


# -- groups ----------------------------------------------------------------------------------------


def members(world: World, group: Rollout) -> list[int]:
    """Return which members of *group* are on."""
    return [one.sample_idx for one in world.stage.plays if one.rollout is group]


def test_a_group_is_one_unit_and_as_many_samples_as_members() -> None:
    world = a_world(batch=1, most_samples=7)
    world.submit_all([Script()] * 3, group_size=3)
    assert running(world) == [0, 1]
    assert (world.core.budget.running, world.core.budget.samples) == (2, 6)


def test_a_group_larger_than_the_concurrency_runs() -> None:
    world = a_world(most_samples=2)
    world.submit(script(1.0), group_size=5)
    world.clock.pass_over(3.0)
    [outcome] = world.caller().take()
    assert outcome.trajectory is not None and len(outcome.trajectory["rewards"]) == 5


def test_a_group_that_has_begun_goes_before_all_others() -> None:
    world = a_world(most_samples=2)
    first = world.submit(Script(), group_size=3)
    second = world.submit(Script(), group_size=2)
    world.row_caller([world.make(None, Lane.ROW)])
    assert members(world, first) == [0, 1]
    world.end(first, member=1)
    assert members(world, first) == [0, 2]
    world.end(first, member=0)
    assert members(world, first) == [2] and running(world) == [0, 2], "then the row"
    assert waits(second)


def test_a_failing_member_ends_its_group_once_the_others_have_cleaned_up() -> None:
    world = a_world(batch=1, max_staleness=0, most_samples=3)
    acts = (Act(), Act(swallows_s=2.0), Act(swallows_s=5.0))
    group = world.submit(Script(acts), group_size=3)
    waiting = world.submit(Script(), is_filtered=False)
    world.end(group, "raises", member=0)
    world.clock.pass_over(2.0)
    assert members(world, group) == [2] and runs(group)
    assert world.core.budget.samples == 1 and waits(waiting)
    world.clock.pass_over(3.0)
    assert status_of(group) == "failed" and runs(waiting)
    assert group.outcome is not None and "rollout 0" in str(group.outcome.error)


def test_members_that_have_not_started_never_do_when_their_group_fails() -> None:
    world = a_world(most_samples=1)
    group = world.submit(Script(), group_size=3)
    world.end(group, "times_out", member=0)
    assert status_of(group) == "timed_out" and len(world.stage.started) == 1


def test_a_cancelled_group_holds_its_slots_until_all_members_have_ended() -> None:
    world = a_world(most_samples=2)
    group = world.submit(Script((Act(swallows_s=1.0), Act(swallows_s=4.0))), group_size=2)
    other = world.submit(Script(), group_size=2)
    world.post(world.core.cancel, group.task_id)
    world.clock.pass_over(1.0)
    assert members(world, other) == [0], "one slot is free"
    world.clock.pass_over(3.0)
    assert status_of(group) == "cancelled" and members(world, other) == [0, 1]


def test_a_member_that_brings_nothing_is_left_out() -> None:
    world = a_world()
    group = world.submit(Script((Act(1.0), Act(1.0, "none"))), group_size=4)
    world.clock.pass_over(1.0)
    [outcome] = world.caller().take()
    assert outcome.task_id == group.task_id and outcome.trajectory is not None
    assert len(outcome.trajectory["rewards"]) == 2


def test_a_group_none_of_whose_members_brings_anything_is_rejected() -> None:
    world = a_world()
    group = world.submit(script(1.0, "none"), group_size=2)
    world.clock.pass_over(1.0)
    assert status_of(group) == "rejected" and len(world.stage.started) == 2


@pytest.mark.parametrize(("ending", "status"), [("bad", "rejected"), ("filter_raises", "failed")])
def test_the_filter_judges_a_group_as_a_whole(ending: Ending, status: str) -> None:
    world = a_world()
    group = world.submit(script(1.0, ending), group_size=2)
    world.clock.pass_over(1.0)
    assert status_of(group) == status


@pytest.mark.parametrize("ending", ["raises", "times_out"])
@pytest.mark.parametrize("how", ["cancel", "end"])
def test_a_group_that_has_failed_stays_so_whatever_comes_while_its_members_clean_up(
    ending: Ending, how: str
) -> None:
    world = a_world()
    group = world.submit(Script((Act(), Act(swallows_s=3.0))), group_size=2)
    world.end(group, ending, member=0)
    if how == "cancel":
        assert not world.core.cancel(group.task_id)
        assert not world.core.cancel(group.task_id), "nor the second time"
    else:
        world.post(world.core.end, RuntimeError)
    assert runs(group)
    world.clock.pass_over(3.0)
    assert group.outcome is not None
    assert group.outcome.status == ("failed" if ending == "raises" else "timed_out")
    assert "by its script" in str(group.outcome.error)
    assert not world.core.cancel(group.task_id)


def test_keep_rest_goes_on_without_the_members_that_fail() -> None:
    world = a_world()
    acts = (Act(1.0, "raises"), Act(2.0), Act(2.0, "cancels_itself"))
    group = world.submit(Script(acts), group_size=3, keep_rest=True)
    world.clock.pass_over(2.0)
    assert group.outcome is not None and group.outcome.trajectory is not None
    assert len(group.outcome.trajectory["rewards"]) == 1


@pytest.mark.parametrize(("ending", "status"), [("raises", "failed"), ("times_out", "timed_out")])
def test_keep_rest_fails_when_none_is_left(ending: Ending, status: str) -> None:
    world = a_world()
    group = world.submit(script(1.0, ending), group_size=2, keep_rest=True)
    world.clock.pass_over(1.0)
    assert status_of(group) == status


def test_keep_rest_fails_when_the_filter_does() -> None:
    world = a_world()
    group = world.submit(script(1.0, "filter_raises"), group_size=2, keep_rest=True)
    world.clock.pass_over(1.0)
    assert status_of(group) == "failed"


def test_what_judges_a_group_needs_a_slot_and_can_be_cancelled() -> None:
    world = a_world(most_samples=1)
    group = world.submit(Script((Act(1.0),), judge=Act(segments=0)), group_size=2)
    other = world.submit(Script())
    world.clock.pass_over(2.0)
    assert members(world, group) == [-1] and waits(other)
    world.post(world.core.cancel, group.task_id)
    world.clock.step()
    assert status_of(group) == "cancelled" and runs(other)


# -- evaluation ------------------------------------------------------------------------------------


def test_evaluation_has_slots_of_its_own() -> None:
    world = a_world(batch=1, max_staleness=0, most_samples=2)
    world.submit_all([Script()] * 4)
    world.submit_all([Script()] * 4, is_eval=True)
    assert running(world) == [0, 4, 5]
    world.end(world.rollouts[4])
    assert running(world) == [0, 5, 6]


def test_evaluation_comes_to_those_only_who_ask_for_it() -> None:
    world = a_world()
    training, evaluation = world.caller(), world.caller(is_eval=True)
    rollout = world.submit(Script(), is_eval=True)
    world.end(rollout)
    assert not training.look()
    assert [outcome.is_eval for outcome in evaluation.take()] == [True]
    assert world.eval_ledger.collected == 1 and world.ledger.submitted == 0
