"""The executor's core and its dispatcher together: what rollouts come to, whatever becomes of workers."""

from __future__ import annotations

import pytest

from areal_core.errors import WorkerLostError
from core_audit import trained_versions
from core_stage import Act, Script
from core_world import runs, status_of, waits
from far_audit import a_far_world

pytestmark = pytest.mark.any_loop


def test_what_a_worker_had_is_played_by_another_and_what_the_first_still_says_is_refused() -> None:
    world = a_far_world(workers=2, slots=4)
    plain, group = world.submit(Script()), world.submit(Script(), group_size=2)
    world.exchange()
    worker, job = world.job_of(plain)
    worker.end(job)
    worker.write_report()
    world.post(world.dispatcher.died, worker.number, "it was cut off")
    assert (plain.losses, world.ledger.lost, world.dispatcher.lost) == (1, 1, 1)
    world.deliver(worker)
    assert runs(plain) and world.dispatcher.refused == 1
    world.exchange()
    world.finish(plain)
    for member in range(2):
        world.finish(group, member=member)
    world.exchange()
    world.finish(group, member=-1)
    caller = world.caller(count=2)
    assert [outcome.status for outcome in caller.take()] == ["accepted"] * 2
    assert group.losses == 0


def test_what_is_played_again_has_the_tokens_and_the_version_of_its_new_start() -> None:
    world = a_far_world(workers=2, slots=4)
    plain = world.submit(Script())
    world.exchange()
    worker, _ = world.job_of(plain)
    world.rise()
    worker.is_dead = True
    world.exchange()
    world.exchange()
    world.finish(plain)
    outcome = plain.outcome
    assert outcome is not None and outcome.trajectory is not None and outcome.start_version == 1
    assert trained_versions(outcome.trajectory, outcome.start_version) == [1]


def test_one_that_takes_its_worker_with_it_fails_in_the_end_and_the_others_do_not() -> None:
    world = a_far_world(workers=4, slots=1, max_losses=2)
    deadly, *others = world.submit_all([Script()] * 3)
    for losses in (1, 2, 3):
        world.exchange()
        worker, _ = world.job_of(deadly)
        worker.is_dead = True
        world.join()
        world.exchange()
        assert deadly.losses == losses
    assert status_of(deadly) == "failed" and deadly.outcome is not None
    assert isinstance(deadly.outcome.error, WorkerLostError)
    world.exchange()
    for rollout in others:
        world.finish(rollout)
    assert [status_of(one) for one in others] == ["accepted"] * 2


def test_a_pause_reaches_what_a_worker_holds_and_has_not_begun() -> None:
    world = a_far_world(workers=1, slots=1, most_ahead=4)
    group = world.submit(Script(), group_size=2)
    world.exchange()
    world.post(world.core.pause)
    world.exchange()
    world.finish(group, member=0)
    assert not world.jobs()
    world.post(world.core.resume)
    world.exchange()
    world.finish(group, member=1)
    world.exchange()
    world.finish(group, member=-1)
    assert status_of(group) == "accepted"


def test_what_waits_for_a_worker_runs_as_far_as_the_core_knows_and_is_doomed_like_others() -> None:
    world = a_far_world(workers=0, max_staleness=0)
    waiting = world.submit(Script())
    assert runs(waiting) and world.dispatcher.waiting == 1
    world.rise()
    assert status_of(waiting) == "stale" and world.dispatcher.waiting == 0


def test_a_worker_that_goes_takes_nothing_along() -> None:
    world = a_far_world(workers=1, slots=1, batch=1, max_staleness=1)
    first, second = world.submit(Script(), group_size=2), world.submit(Script())
    world.exchange()
    world.join()
    world.post(world.dispatcher.drain, 1)
    world.exchange()
    world.exchange()
    assert world.job_of(second)[0].number == 2 and world.job_of(first)[0].number == 1
    world.finish(first, member=0)
    world.exchange()
    world.finish(first, member=1)
    world.exchange()
    world.finish(first, "tokens", member=-1)
    world.finish(second)
    assert [status_of(first), status_of(second)] == ["accepted"] * 2
    assert world.stage.gone == [(1, None)] and not world.stage.lost and world.workers[1].is_dead


def test_a_cancelled_one_ends_as_soon_as_its_worker_says_so() -> None:
    world = a_far_world(workers=1, slots=1)
    rollouts = world.submit_all([Script((Act(),))] * 2)
    world.exchange()
    for rollout in rollouts:
        world.post(world.core.cancel, rollout.task_id)
    assert runs(rollouts[0]) and status_of(rollouts[1]) == "cancelled", "the second was nowhere so far"
    world.exchange()
    world.clock.pass_over(0.0)
    world.exchange()
    assert status_of(rollouts[0]) == "cancelled" and not waits(rollouts[0])
