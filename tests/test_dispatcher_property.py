"""The executor's core with workers, whatever happens to them: each rollout ends once, none is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from areal_core._distributed.leases import LeaseRules
from areal_core._executor.rules import Rules
from core_chance import some_rules
from core_stage import Act, Script
from far_audit import FarAudit
from far_worker import FarWorker
from far_world import FarWorld
from test_core_property import ENDS, NUMBERS, CoreMachine

pytestmark = pytest.mark.any_loop

_LEASE_S, _HANG_S, _DRAIN_S = 40.0, 20.0, 10.0
_QUIET_S = 120.0  # longer than any timer that is no lease
_MOST_ROUNDS = 500

LEASES = st.builds(
    LeaseRules,
    slots=st.sampled_from([1, 1, 2, 3]),
    most_ahead=st.integers(0, 3),
    exchange_s=st.sampled_from([0.02, 10.0]),
    lease_s=st.just(_LEASE_S),
    hang_s=st.just(_HANG_S),
    drain_s=st.just(_DRAIN_S),
)


class FarMachine(CoreMachine):
    """Does all that `CoreMachine` does, and all that workers, their loops and the post between can do."""

    world: FarWorld

    @initialize(
        rules=some_rules(max_losses=st.integers(0, 2)),
        leases=LEASES,
        version=st.sampled_from([0, 5]),
        workers=st.integers(0, 3),
    )
    def begin(self, rules: Rules, leases: LeaseRules, version: int, workers: int) -> None:
        self.world = FarWorld(rules, leases, version=version)
        self.audit = FarAudit(self.world)
        self.world.join(workers)

    # -- episodes ----------------------------------------------------------------------------------

    @precondition(lambda self: self.world.jobs())
    @rule(which=NUMBERS, act=ENDS)
    def end_one(self, which: int, act: Act) -> None:
        worker, job = self._one_of(self.world.jobs(), which)
        worker.end(job, act)

    @precondition(lambda self: self.world.jobs())
    @rule(act=ENDS)
    def end_all(self, act: Act) -> None:
        for worker, job in self.world.jobs():
            worker.end(job, act)

    @precondition(lambda self: self.world.jobs())
    @rule(which=NUMBERS)
    def send_segment(self, which: int) -> None:
        worker, job = self._one_of(self.world.jobs(), which)
        worker.send_segment(worker.plays[job])

    # -- the post ----------------------------------------------------------------------------------

    @precondition(lambda self: self._have_letters())
    @rule(which=NUMBERS)
    def read_letter(self, which: int) -> None:
        self._one_of(self._have_letters(), which).read_letter()

    @precondition(lambda self: self.world.alive)
    @rule(which=NUMBERS)
    def write_report(self, which: int) -> None:
        self._one_of(self.world.alive, which).write_report()

    @precondition(lambda self: self.world.workers)
    @rule(which=NUMBERS)
    def deliver(self, which: int) -> None:
        self.world.deliver(self._one_of(list(self.world.workers.values()), which))

    @rule()
    def exchange(self) -> None:
        self.world.exchange()

    @rule(act=ENDS)
    def play_on(self, act: Act) -> None:
        self.world.exchange()
        for worker, job in self.world.jobs():
            worker.end(job, act)
        self.world.exchange()

    # -- workers -----------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.alive) < 4)
    @rule()
    def join(self) -> None:
        self.world.join()

    @precondition(lambda self: self.world.alive)
    @rule(which=NUMBERS)
    def die(self, which: int) -> None:
        self._one_of(self.world.alive, which).is_dead = True

    @precondition(lambda self: self.world.alive)
    @rule(which=NUMBERS)
    def drain(self, which: int) -> None:
        worker = self._one_of(self.world.alive, which)
        self.world.post(self.world.dispatcher.drain, worker.number)

    @precondition(lambda self: self.world.alive)
    @rule(which=NUMBERS)
    def hang(self, which: int) -> None:
        self._one_of(self.world.alive, which).hang()

    @precondition(lambda self: self._hung())
    @rule(which=NUMBERS)
    def turn(self, which: int) -> None:
        self._one_of(self._hung(), which).turn()

    @precondition(lambda self: self._hung())
    @rule(which=NUMBERS, seconds=st.sampled_from([_HANG_S + 1, _DRAIN_S]))
    def hang_for_long(self, which: int, seconds: float) -> None:
        worker = self._one_of(self._hung(), which)
        self.world.clock.pass_over(seconds)
        if not worker.is_dead:
            worker.write_report()

    @precondition(lambda self: self.world.alive)
    @rule(
        which=NUMBERS,
        turns=st.sampled_from(["before it reads", "before it hands back", "after", "never"]),
        cancels=st.booleans(),
    )
    def hang_and_hand_back(self, which: int, turns: str, cancels: bool) -> None:
        """Let one hang that has all that is for it, and see what comes back; some of that is cancelled."""
        world, worker = self.world, self._one_of(self.world.alive, which)
        self.exchange()
        worker.hang()
        world.clock.pass_over(_HANG_S + 1)
        for when in ("before it reads", "before it hands back", "after"):
            if not worker.is_dead:
                worker.write_report()
            world.deliver(worker)
            if turns == when:
                worker.turn()
            if cancels and when == "before it hands back":
                for episode, _ in list(worker.floor._pending.values()):
                    world.post(world.core.cancel, episode.rollout.task_id)
            while worker.letters and not worker.is_dead:
                worker.read_letter()

    # -- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "world"):
            assert self.world.dispatcher.lost >= sum(one.losses for one in self.world.rollouts)
            for worker in list(self.world.dispatcher.workers):
                self.world.post(self.world.dispatcher.drain, worker)
            assert not self.world.dispatcher.workers, "one that has nothing was not let go"

    def _let_all_end(self) -> None:
        world = self.world
        for worker in world.alive:
            worker.turn()
        quiet_s = 0.0
        for _ in range(_MOST_ROUNDS):
            if quiet_s >= _QUIET_S:
                return
            if not [state for state in world.dispatcher.workers.values() if not state.is_draining]:
                world.join()
            is_new = world.exchange()
            is_hungry = [caller.look() for caller in self._waiting()]
            jobs = world.jobs()
            for worker, job in jobs:
                if job in worker.plays:
                    worker.end(job, Act())
            if is_new or any(is_hungry) or jobs:
                quiet_s = 0.0
            else:
                world.clock.pass_over(_LEASE_S / 4)
                quiet_s += _LEASE_S / 4
        raise AssertionError(f"it never ends: {world.ledger}, {world.eval_ledger}")

    # -- help --------------------------------------------------------------------------------------

    def _have_letters(self) -> list[FarWorker]:
        return [worker for worker in self.world.alive if worker.letters]

    def _hung(self) -> list[FarWorker]:
        return [worker for worker in self.world.alive if worker.hangs_since is not None]

    def _script(self) -> Script:
        return Script(judge=Act(segments=0))


def test_whatever_happens_to_workers_every_rule_holds() -> None:
    machine: Any = FarMachine
    run_state_machine_as_test(machine, settings=settings(max_examples=80, stateful_step_count=60))
