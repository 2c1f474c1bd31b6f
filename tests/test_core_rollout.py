"""What a rollout is before anything has happened to it, and after it is run again."""

from __future__ import annotations

from typing import Any

import pytest

from areal_core._executor.freshness import UNKNOWN, Ages
from areal_core._executor.rollout import Episode, Lane, Plan, State, Verdict
from core_audit import a_world
from core_stage import Script
from core_world import status_of

pytestmark = pytest.mark.any_loop


def a_plan() -> Plan:
    return a_world().make(Script()).plan


def test_a_rollout_that_nobody_has_touched_is_as_old_as_nothing() -> None:
    rollout = a_plan().rollout(7, {"x": 1}, Lane.OPEN)
    assert (rollout.task_id, rollout.start_order, rollout.start_version) == (7, -1, -1)
    assert (rollout.started_at, rollout.busy_s, rollout.ages, rollout.phases) == (0.0, 0.0, UNKNOWN, None)
    assert rollout.is_journaled is False
    assert rollout.doom is None and not rollout.is_ending


@pytest.mark.parametrize("is_journaled", [True, False])
def test_what_the_journal_knows_is_said_by_name(is_journaled: bool) -> None:
    plan: Any = a_plan()
    assert plan.rollout(0, {}, Lane.OPEN, is_journaled=is_journaled).is_journaled is is_journaled
    with pytest.raises(TypeError):
        plan.rollout(0, {}, Lane.OPEN, None)


@pytest.mark.parametrize("make", [a_plan, lambda: Verdict(None)])
def test_plans_and_verdicts_are_only_what_they_are(make: Any) -> None:
    """They do not change, and two that look alike are two."""
    one, other = make(), make()
    with pytest.raises(AttributeError, match="immutable"):
        setattr(one, one.__struct_fields__[0], None)
    assert one != other and len({one, other}) == 2


def test_rollouts_are_numbered_as_they_start() -> None:
    world = a_world()
    assert [world.submit(Script()).start_order for _ in range(3)] == [0, 1, 2]


def test_an_episode_is_known_by_its_item() -> None:
    world = a_world()
    rollout = world.make(Script())
    rollout.data_id = "it"
    world.post(world.core.submit, [rollout])
    assert rollout.episodes[0].record.data_id == "it"


@pytest.mark.parametrize("end", ["cancel", "set_version"])
def test_a_group_none_of_which_runs_just_now_ends_at_once(end: str) -> None:
    world = a_world(most_samples=1, max_staleness=0, on_stale="drop")
    group = world.submit(Script(), group_size=2)
    world.post(world.core.pause)
    world.end(group)
    assert group.state is State.RUNNING
    world.post(getattr(world.core, end), group.task_id if end == "cancel" else 1)
    assert status_of(group) == ("cancelled" if end == "cancel" else "stale")


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_member_that_fails_is_told_of_where_there_are_others(group_size: int) -> None:
    world, told = a_world(), list[Episode]()
    world.told.member_failed = told.append  # type: ignore[assignment, method-assign]
    rollout = world.submit(Script(), group_size=group_size, keep_rest=True)
    world.end(rollout, "raises")
    assert told == list(rollout.episodes[:1] if group_size > 1 else ())


def test_an_episode_that_was_lost_and_ends_later_is_over_already() -> None:
    world = a_world()
    rollout = world.submit(Script())
    lost = rollout.episodes[0]
    world.stage.plays.pop(lost)
    world.post(world.core.rollouts_lost, [rollout], OSError())
    world.post(world.core.episodes_ended, [lost])
    assert (rollout.alive, world.core.budget.samples, rollout.state) == (1, 1, State.RUNNING)


def test_what_an_earlier_run_left_is_older_than_all_else() -> None:
    left, new = (a_plan().rollout(number, {}, Lane.BATCH) for number in range(2))
    new.start_version, new.start_order = 0, 0
    left.start_version, left.start_order, left.is_recovered = 9, -5, True
    assert left.age < new.age
    left.is_recovered = False
    assert left.age > new.age == (0, 0)


def test_the_times_of_its_episodes_are_added_up_when_they_are_forgotten() -> None:
    world = a_world()
    group = world.submit(Script(), group_size=2)
    judge = Episode(group, -1, group.episodes[0].record, seconds=100.0)
    for number, member in enumerate(group.episodes):
        member.seconds = 1.0 + number
    group.judge = judge
    for one in (*group.episodes, judge):
        one.record = type(one.record)()
        one.record.generate_s, one.record.reward_s, one.record.accept_s = 1.0, 0.25, 0.125
    group.forget_episodes()
    assert (group.busy_s, group.phases) == (3.0, (3.0, 0.75, 0.375))
    assert not group.members()
    assert judge.is_judge and Episode(group, 0, judge.record).seconds == 0.0


@pytest.mark.parametrize("requeued", [True, False])
def test_what_is_run_again_is_as_new(requeued: bool) -> None:
    world = a_world()
    rollout: Any = world.submit(Script())
    world.end(rollout)
    rollout.ages, rollout.doom, rollout.is_recovered, rollout.dumped_at = Ages(1, 2, 3), "too old", True, 4
    rollout.restart(requeued=requeued)
    assert (rollout.ages, rollout.doom, rollout.is_recovered) == (UNKNOWN, None, False)
    assert (rollout.outcome, rollout.dumped_at, rollout.requeues) == (None, None, int(requeued))
    with pytest.raises(TypeError):
        rollout.restart(False)
