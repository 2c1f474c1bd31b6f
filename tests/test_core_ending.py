"""What a rollout came to."""

from __future__ import annotations

import pytest

from areal_core._executor.ending import _why_rejected, packed_of
from areal_core._executor.rollout import Verdict
from core_audit import a_world
from core_stage import Script, script

pytestmark = pytest.mark.any_loop


def test_one_that_was_cancelled_says_which_it_is() -> None:
    world = a_world()
    rollout = world.submit(Script())
    world.core.cancel(rollout.task_id)
    world.clock.pass_over(1.0)
    assert rollout.outcome is not None
    assert repr(rollout.outcome.error) == "CancelledError('rollout 0 was cancelled')"


def test_a_group_of_one_has_no_members_that_failed_beside_it() -> None:
    world = a_world()
    rollout = world.submit(script(1.0, "raises"), keep_rest=True)
    world.clock.pass_over(1.0)
    assert rollout.outcome is not None and rollout.outcome.status == "failed"
    assert (rollout.outcome.members_failed, rollout.outcome.member_error) == (0, None)


def test_the_first_reason_that_was_given_is_told() -> None:
    world = a_world()
    group = world.submit(Script(), group_size=4)
    assert _why_rejected(group) == "no reason given"
    for member, verdict in zip(
        group.episodes,
        (None, Verdict(None), Verdict(None, reason="too long"), Verdict(None, reason="too short")),
        strict=True,
    ):
        member.verdict = verdict
    assert _why_rejected(group) == "too long"


def test_a_trajectory_is_packed_if_its_player_packed_it() -> None:
    world = a_world()
    rollout = world.submit(Script())
    assert packed_of(rollout) is None
    rollout.episodes[0].verdict = Verdict({}, packed=b"packed")
    assert packed_of(rollout) == b"packed"


def test_what_its_player_packed_is_kept_for_the_journal() -> None:
    world = a_world()
    rollout = world.submit(Script())
    episode = rollout.episodes[0]
    world.stage.plays.pop(episode)
    episode.verdict = Verdict({}, packed=b"packed")
    world.post(world.core.episodes_ended, [episode])
    assert rollout.is_accepted and rollout.packed == b"packed"


def test_one_that_ended_too_old_says_why() -> None:
    world = a_world(on_stale="mask", max_staleness=0)
    rollout = world.submit(Script())
    world.rise(is_told=False)
    world.stage.send_segment(world.play(rollout))
    world.post(world.core.set_version, 1)
    assert not rollout.is_doomed, "it has asked for tokens that are young enough"
    world.end(rollout, versions=(0,))  # and has got none
    assert rollout.outcome is not None and rollout.outcome.status == "stale"
    assert rollout.outcome.reason == (
        "started at version 0; too much of it is older than version 1, the oldest that version 1 may be "
        "trained on"
    )
