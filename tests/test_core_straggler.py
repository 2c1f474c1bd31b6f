"""When a batch that is there waits for stragglers: one law of the executor's core in each test."""

from __future__ import annotations

import math

import pytest

from areal_core._executor.rollout import Lane, Rollout
from core_audit import a_world
from core_stage import Script
from core_world import World, batch_caller, is_answered

pytestmark = pytest.mark.any_loop


def run_to_the_end(world: World, rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        world.end(rollout)


def test_without_straggler_wait_a_batch_goes_as_soon_as_it_is_there() -> None:
    world = a_world(max_staleness=1, on_stale="drop")
    world.submit_all([Script()] * 4, Lane.BATCH)
    run_to_the_end(world, world.rollouts[2:])
    assert is_answered(world.ask_for_batch())


def test_a_batch_waits_for_stragglers_that_would_be_too_old() -> None:
    """At version 1 two began at 0: when the batch goes without them, they are too old for the next."""
    world = a_world(on_stale="drop", straggler_wait_s=math.inf)
    world.submit_all([Script()] * 6, Lane.BATCH)
    run_to_the_end(world, world.rollouts[:2])
    assert len(batch_caller(world).take()) == 2
    world.rise()
    straggler, other = world.rollouts[2:4]
    run_to_the_end(world, [other, *world.rollouts[4:6]])
    request = world.ask_for_batch()
    assert not is_answered(request) and request.there == 3
    world.end(straggler)
    assert is_answered(request) and list(request.rollouts) == [straggler, other]


def test_a_batch_waits_when_more_would_be_left_than_the_batches_to_come_can_take() -> None:
    """Nobody is too old for the next batch, but the one after that could not take all who are."""
    world = a_world(max_staleness=2, on_stale="drop", straggler_wait_s=math.inf)
    world.submit_all([Script()] * 6, Lane.BATCH)
    run_to_the_end(world, world.rollouts[:2])
    assert batch_caller(world).take(), "the batches to come take the four that are left"
    world.rise()
    world.submit_all([Script()] * 2, Lane.BATCH)
    run_to_the_end(world, world.rollouts[6:])
    request = world.ask_for_batch()
    assert not is_answered(request), "four of version 0 run, and one more batch may have them"
    run_to_the_end(world, world.rollouts[2:4])
    assert is_answered(request)


@pytest.mark.parametrize("wait_s", [1.0, 10.0])
def test_a_batch_waits_no_longer_than_it_is_to(wait_s: float) -> None:
    world = a_world(on_stale="drop", straggler_wait_s=wait_s)
    world.submit_all([Script()] * 6, Lane.BATCH)
    run_to_the_end(world, world.rollouts[:2])
    batch_caller(world).take()
    world.rise()
    run_to_the_end(world, world.rollouts[4:6])
    request = world.ask_for_batch()
    world.clock.pass_over(wait_s - 0.1)
    assert not is_answered(request)
    world.clock.pass_over(0.1)
    assert list(request.rollouts) == world.rollouts[4:6]


def test_a_hungry_caller_has_waited_already() -> None:
    world = a_world(on_stale="drop", straggler_wait_s=10.0)
    world.submit_all([Script()] * 6, Lane.BATCH)
    run_to_the_end(world, world.rollouts[:2])
    batch_caller(world).take()
    world.rise()
    run_to_the_end(world, world.rollouts[4:6])
    request = world.batch_request()  # nothing is pending, so it is hungry
    world.post(world.core.ask, request)
    assert request.hunger == 4
    world.clock.pass_over(6.0)
    again = request.again()
    again.keep_pending = -1
    world.post(world.core.ask, again)
    world.clock.pass_over(4.0)
    assert list(again.rollouts) == world.rollouts[4:6]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_what_has_ended_and_would_be_left_counts_as_well(max_staleness: int) -> None:
    """A batch smaller than was planned for leaves more than those to come can take."""
    world = a_world(max_staleness=max_staleness, on_stale="drop", straggler_wait_s=math.inf)
    straggler, *others = world.submit_all([Script()] * world.rules.most_units, Lane.BATCH)
    run_to_the_end(world, others)
    request = world.ask_for_batch(1)
    assert not is_answered(request)
    world.end(straggler)
    assert is_answered(request)
