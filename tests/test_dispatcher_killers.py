"""Rollouts that kill their workers, among others: these are innocent, and do not fail for it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_core._distributed.leases import LeaseRules
from areal_core._executor.rollout import Rollout
from areal_core._executor.rules import Rules
from areal_core.errors import WorkerLostError
from core_stage import Act, Script
from core_world import status_of
from far_audit import FarAudit
from far_worker import FarWorker
from far_world import FarWorld
from lending import Office

pytestmark = pytest.mark.any_loop


class Poisoned:
    """A world in which some rollouts kill the worker that has begun them, sooner or later."""

    def __init__(
        self,
        dice: random.Random,
        leases: LeaseRules,
        *,
        innocents: int,
        killers: int,
        workers: int,
        losses: int,
    ) -> None:
        rules = Rules(batch=1000, max_staleness=1, most_samples=None, most_started=1000, max_losses=losses)
        self._dice = dice
        self.world = FarWorld(rules, leases)
        FarAudit(self.world)
        self.world.join(workers)
        sizes = [dice.choice([1, 1, 1, 3]) for _ in range(innocents + killers)]
        self.rollouts = [self.world.submit(Script(judge=Act(segments=0)), group_size=size) for size in sizes]
        self.killers = set(dice.sample(self.rollouts, killers))
        self._ids = {one.task_id for one in self.killers}
        self.deaths = 0

    def play(self, most_rounds: int) -> bool:
        """Play; return whether all have ended. Of what runs, a part ends in each round."""
        for _ in range(most_rounds):
            self.world.exchange()
            if all(one.outcome is not None for one in self.rollouts):
                return True
            self.world.clock.pass_over(0.1)
            for worker in self.world.alive:
                self._turn(worker)
        return False

    def _turn(self, worker: FarWorker) -> None:
        """Let a part of what runs there end, with what begins in its place; nobody learns of it meanwhile."""
        seen: set[Any] = set()
        while not worker.is_dead:
            job = next((one for one in worker.plays if one not in seen), None)
            if job is None:
                return
            seen.add(job)
            if self._dice.random() < 0.5:
                continue
            if job.task_id in self._ids:
                self._die(worker)
            else:
                worker.end(job, Act())

    def kill_any(self) -> None:
        """Have a worker die that has begun several, though none of them is to blame."""
        busy = [one for one in self.world.alive if len({job.task_id for job in one.plays}) > 1]
        if busy:
            self._die(self._dice.choice(busy))

    def _die(self, worker: FarWorker) -> None:
        worker.is_dead = True
        self.deaths += 1
        self.world.join()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    leases=st.builds(
        LeaseRules, slots=st.sampled_from([1, 2, 8]), most_ahead=st.integers(0, 3), exchange_s=st.just(0.1)
    ),
    innocents=st.integers(0, 40),
    killers=st.integers(1, 3),
    workers=st.integers(1, 3),
    losses=st.integers(1, 4),
    kills=st.integers(0, 5),
)
def test_who_kills_workers_fails_and_nobody_else_does(
    seed: int, leases: LeaseRules, innocents: int, killers: int, workers: int, losses: int, kills: int
) -> None:
    poisoned = Poisoned(
        random.Random(seed), leases, innocents=innocents, killers=killers, workers=workers, losses=losses
    )
    for _ in range(kills):
        poisoned.play(most_rounds=2)
        poisoned.kill_any()
    assert poisoned.play(most_rounds=2000)
    for rollout in poisoned.rollouts:
        if rollout in poisoned.killers:
            assert status_of(rollout) == "failed" and rollout.losses == losses + 1
            assert rollout.outcome is not None and isinstance(rollout.outcome.error, WorkerLostError)
        else:
            assert status_of(rollout) == "accepted"


# -- company ---------------------------------------------------------------------------------------


def test_with_each_loss_there_is_less_company_of_suspects_and_in_the_end_none() -> None:
    company = []
    for losses in (1, 2, 3):
        office = Office(workers=1, slots=64)
        start_lost(office, losses, 64)
        company.append(office.loads()[1])
    assert company == [16, 4, 1]


def test_fresh_ones_go_beside_suspects_and_not_beside_one_that_is_alone() -> None:
    office = Office(workers=2, slots=8)
    start_lost(office, 1, 6)
    office.start(20)
    assert office.loads() == {1: 8, 2: 8} and office.dispatcher.waiting == 10
    office = Office(workers=2, slots=8)
    (alone,) = start_lost(office, 3, 1)
    office.start(20)
    assert sorted(office.loads().values()) == [1, 8] and office.loads()[office.worker(alone)] == 1


def test_whoever_was_lost_more_often_has_the_say_about_company() -> None:
    office = Office(workers=1, slots=64)
    start_lost(office, 1, 5)
    start_lost(office, 2, 1)
    assert office.loads() == {1: 5}, "it may be with three others"
    office = Office(workers=1, slots=64)
    start_lost(office, 2, 1)
    start_lost(office, 1, 5)
    assert office.loads() == {1: 4}


def test_suspects_that_have_no_place_wait_in_their_order_while_fresh_ones_pass() -> None:
    office = Office(workers=1, slots=8)
    suspects = start_lost(office, 1, 6)
    office.start(4)
    assert office.loads() == {1: 8}
    for first, second in zip(suspects, suspects[4:], strict=False):
        office.end(first)
        assert office.worker(second) == 1


def test_a_worker_is_kept_until_it_has_nothing_left_and_then_for_one_alone() -> None:
    office = Office(workers=1, slots=2)
    rollouts = office.start(2)
    (alone,) = start_lost(office, 3, 1)
    fresh = office.start(2)
    office.end(rollouts[0])
    assert office.loads() == {1: 1} and office.dispatcher.waiting == 3
    office.end(rollouts[1])
    assert office.worker(alone) == 1 and office.loads() == {1: 1}
    office.end(alone)
    assert [office.worker(one) for one in fresh] == [1, 1]


def test_half_of_the_workers_at_most_are_kept_for_those_that_are_alone() -> None:
    office = Office(workers=4, slots=8)
    start_lost(office, 3, 5)
    office.start(40)
    assert sorted(office.loads().values()) == [1, 1, 8, 8]


@pytest.mark.parametrize("how", ["cancelled", "drained", "dead"])
def test_a_worker_is_kept_no_longer_than_for_whom_it_is_kept_may_come(how: str) -> None:
    office = Office(workers=1, slots=2)
    rollouts = office.start(2)
    (alone,) = start_lost(office, 3, 1)
    (fresh,) = office.start(1)
    office.end(rollouts[0])
    assert office.loads() == {1: 1} and office.dispatcher.waiting == 2
    if how == "cancelled":
        office.cancel(alone)
        office.dispatcher.go_on()
        assert office.worker(fresh) == 1
        return
    office.dispatcher.joined(2)
    if how == "drained":
        office.dispatcher.drain(1)
    else:
        office.dispatcher.died(1, "it was killed")
    office.dispatcher.go_on()
    assert office.worker(alone) == 2 and office.loads()[2] == 1


# -- what counts -----------------------------------------------------------------------------------


def test_a_last_loss_counts_for_whoever_was_alone_and_not_for_whoever_had_company() -> None:
    office = Office(workers=1, slots=2)
    (group,) = office.start(group_size=2, members=1)
    office.end(group)
    (alone,) = start_lost(office, 3, 1)
    office.start_more(group)  # it goes on where it is
    office.dispatcher.go_on()
    assert office.loads() == {1: 2}
    office.dispatcher.died(1, "it was killed")
    assert set(office.lost) == {group, alone} and office.unbegun == [alone]
    office = Office(workers=1, slots=2)
    (alone,) = start_lost(office, 3, 1)
    office.dispatcher.died(1, "it was killed")
    assert office.lost == [alone] and not office.unbegun


def test_where_no_loss_is_allowed_the_first_counts() -> None:
    office = Office(workers=1, slots=2, max_losses=0)
    rollouts = office.start(2)
    assert office.loads() == {1: 2}
    office.dispatcher.died(1, "it was killed")
    assert office.lost == rollouts and not office.unbegun


def start_lost(office: Office, losses: int, count: int) -> list[Rollout]:
    """Have *count* rollouts played that were lost so often."""
    rollouts = [office._new(1) for _ in range(count)]
    for rollout in rollouts:
        rollout.losses = losses
        office.start_more(rollout)
    office.dispatcher.go_on()
    return rollouts
