"""The executor's core, whatever happens: none too old, none lost, none doubled, never at a standstill."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout
from areal_core._executor.rules import Rules
from areal_core.errors import RunnerStoppedError
from core_audit import Audit, balanced
from core_chance import some_rules
from core_stage import ENDINGS, Act, Play, Script
from core_world import Caller, World

pytestmark = pytest.mark.any_loop

NUMBERS = st.integers(0, 1_000)
"""To choose with, among however many there are then."""


ENDS = st.builds(
    Act,
    ending=st.sampled_from(["tokens", "tokens", "tokens", *ENDINGS]),
    has_versions=st.sampled_from([True, True, True, False]),
    has_mask=st.booleans(),
    is_over=st.booleans(),
    back=st.sampled_from([0, 0, 0, 1, 2]),
)


class CoreMachine(RuleBasedStateMachine):
    """Does all that callers, episodes, the version and the loop can do, in any order.

    Episodes end only by `end_one`; the audit looks after every turn of the loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[Caller] = []
        self.batch_caller: Caller | None = None

    @initialize(rules=some_rules(), version=st.sampled_from([0, 5]))
    def begin(self, rules: Rules, version: int) -> None:
        self.world = World(rules, version=version)
        self.audit = Audit(self.world)

    # -- callers -----------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 3),
        group_size=st.integers(1, 3),
        is_eval=st.booleans(),
        keep_rest=st.booleans(),
    )
    def submit(self, count: int, **options: Any) -> None:
        self.world.submit_all([self._script()] * count, **options)

    @rule(
        count=st.integers(1, 3),
        group_size=st.integers(1, 2),
        is_eval=st.booleans(),
        keep_rest=st.booleans(),
    )
    def ask_for_rows(self, count: int, **options: Any) -> None:
        rows = [self.world.make(self._script(), Lane.ROW, **options) for _ in range(count)]
        self.callers.append(self.world.row_caller(rows))

    @rule(count=st.integers(1, 3), is_eval=st.booleans())
    def wait(self, count: int, is_eval: bool) -> None:
        self.callers.append(Caller(self.world, Request(Want.ENDED, count, is_eval)))

    @precondition(lambda self: self.world.rollouts)
    @rule(which=NUMBERS)
    def wait_for_task(self, which: int) -> None:
        rollout = self._one_of(self.world.rollouts, which)
        self.callers.append(Caller(self.world, Request(Want.CLAIMED, 1, claims=[rollout.task_id])))

    @precondition(lambda self: self.batch_caller is None or self.batch_caller.is_done)
    @rule(
        size=NUMBERS,
        dynamic=st.booleans(),
        group_size=st.sampled_from([1, 1, 2]),
        keep_rest=st.booleans(),
    )
    def prepare_batch(self, size: int, dynamic: bool, **options: Any) -> None:
        count = 1 + size % self.world.rules.most_units
        feed = self.world.feeder(self._script, **options)
        caller = Caller(self.world, self.world.batch_request(count, dynamic=dynamic), feed=feed)
        self.batch_caller = caller
        self.callers.append(caller)

    @precondition(lambda self: self._waiting())
    @rule(which=NUMBERS)
    def look(self, which: int) -> None:
        self._one_of(self._waiting(), which).look()

    @precondition(lambda self: self._waiting())
    @rule(which=NUMBERS, by=st.sampled_from([1, 2, -1, -3]))
    def look_while_the_version_changes(self, which: int, by: int) -> None:
        self.world.moves_at_reads.append(max(by, -self.world.version))
        self._one_of(self._waiting(), which).look()
        self.world.moves_at_reads.clear()

    @precondition(lambda self: self._waiting())
    @rule(which=NUMBERS)
    def give_up(self, which: int) -> None:
        self._one_of(self._waiting(), which).give_up(TimeoutError())

    @precondition(lambda self: self.world.rollouts)
    @rule(which=NUMBERS)
    def cancel(self, which: int) -> None:
        self.world.post(self.world.core.cancel, self._one_of(self.world.rollouts, which).task_id)

    @precondition(lambda self: not self.world.is_busy)
    @rule(count=st.integers(1, 3))
    def give_back(self, count: int) -> None:
        budget = self.world.core.budget
        before = budget.units
        try:
            self.world.core.give_back(count)
        except ValueError:
            assert budget.units == before
        else:
            assert budget.units == before + count
        self.world.wake()

    @rule()
    def reset_failures(self) -> None:
        self.world.post(self.world.core.reset_failures)

    # -- episodes, the version, the loop -----------------------------------------------------------

    @precondition(lambda self: self.world.stage.plays)
    @rule(which=NUMBERS, act=ENDS)
    def end_one(self, which: int, act: Act) -> None:
        self._end(self._one_of(list(self.world.stage.plays.values()), which), act)

    @precondition(lambda self: self.world.stage.plays)
    @rule(act=ENDS)
    def end_all(self, act: Act) -> None:
        for play in list(self.world.stage.plays.values()):
            self._end(play, act)

    @precondition(lambda self: self.world.stage.plays)
    @rule(which=NUMBERS)
    def send_segment(self, which: int) -> None:
        self.world.stage.send_segment(self._one_of(list(self.world.stage.plays.values()), which))

    @rule(by=st.sampled_from([1, 1, 1, 2, 5]), is_told=st.booleans())
    def rise(self, by: int, is_told: bool) -> None:
        self.world.rise(by, is_told=is_told)

    @rule(by=st.integers(1, 3), up=st.integers(0, 4))
    def go_back(self, by: int, up: int) -> None:
        self.world.rise(-min(by, self.world.version))
        self.world.rise(up)

    @rule()
    def tell_version(self) -> None:
        self.world.post(self.world.core.set_version, self.world.version)

    @rule(is_busy=st.booleans())
    def keep_the_loop_busy(self, is_busy: bool) -> None:
        self.world.set_busy(is_busy)

    @rule()
    def pause(self) -> None:
        self.world.post(self.world.core.pause)

    @rule()
    def resume(self) -> None:
        self.world.post(self.world.core.resume)

    @rule()
    def let_a_timer_ring(self) -> None:
        self.world.clock.step()

    # -- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.set_busy(False)
        self.world.post(self.world.core.resume)
        self.world.post(self.world.core.set_version, self.world.version)
        self._let_all_end()
        for caller in self._waiting():
            self._check_may_wait(caller)
        self.world.post(self.world.core.end, RunnerStoppedError)
        self._let_all_end()
        assert not self._waiting()
        self._collect_the_rest()
        self.audit.check_all_collected()
        assert balanced(self.world.ledger) and balanced(self.world.eval_ledger)

    def _let_all_end(self) -> None:
        """Do whatever lets something go on, until nothing does."""
        world = self.world
        while True:
            was_hungry = [caller.look() for caller in self._waiting()]
            plays = list(world.stage.plays.values())
            for play in plays:
                if play.episode in world.stage.plays:
                    self._end(play, Act())
            if not (any(was_hungry) or plays or world.clock.step()):
                return

    def _check_may_wait(self, caller: Caller) -> None:
        """Check that it is right for *caller* to wait still: there is not enough for him."""
        request = caller.request
        assert request.want is Want.ENDED
        pending = self.world.core.scheduler
        line = pending.evaluation if request.is_eval else pending.training
        assert not line.pending
        assert len(list(self._open(request.is_eval))) < request.count

    def _collect_the_rest(self) -> None:
        for is_eval in (False, True):
            rest = len(list(self._open(is_eval)))
            if rest:
                caller = Caller(self.world, Request(Want.ENDED, rest, is_eval))
                assert caller.look() and caller.outcomes is not None
        for_batches = list(self.world.core.delivery._batch.values())
        if for_batches:
            caller = Caller(self.world, self.world.batch_request(len(for_batches), dynamic=True))
            assert caller.look()
        unwanted = self.world.core.delivery._unwanted
        for rollout in list(unwanted.values()):
            assert rollout.outcome is not None and rollout.outcome.status != "accepted"

    def _open(self, is_eval: bool) -> list[Rollout]:
        finished = self.world.core.delivery.finished()
        return [one for one in finished if one.lane is not Lane.BATCH and one.plan.is_eval == is_eval]

    # -- help --------------------------------------------------------------------------------------

    def _script(self) -> Script:
        return Script(judge=Act(segments=0))

    def _waiting(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.is_done]

    def _one_of(self, these: list[Any], which: int) -> Any:
        return these[which % len(these)]

    def _end(self, play: Play, act: Act) -> None:
        self.world.stage.end(play, act)


def test_whatever_happens_every_rule_holds() -> None:
    run_state_machine_as_test(CoreMachine, settings=settings(max_examples=150, stateful_step_count=50))
