"""Training on the executor's core: the next batch always comes, and nothing in it is too old."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane
from areal_core._executor.rules import Rules
from areal_core.errors import RunnerStoppedError
from core_audit import Audit
from core_chance import some_rules
from core_stage import ENDINGS, Act, Script
from core_world import Caller, World

pytestmark = pytest.mark.any_loop


@dataclass(frozen=True)
class Course:
    """How a training goes: what episodes do, and what else happens meanwhile."""

    group_size: int = 1
    dynamic: bool = False
    keep_rest: bool = False
    brings: float = 0.7
    """How probable it is that an episode brings a trajectory, and the filter accepts it."""
    sigma: float = 1.0
    """How much the lengths of episodes differ: that of their logarithm."""
    others: bool = False
    """Whether there are rows, evaluation, and versions that rise while a batch is cut."""


COURSES = st.builds(
    Course,
    group_size=st.sampled_from([1, 1, 2, 3]),
    dynamic=st.booleans(),
    keep_rest=st.booleans(),
    brings=st.sampled_from([1.0, 0.7, 0.2]),
    sigma=st.sampled_from([0.0, 0.5, 1.5]),
    others=st.booleans(),
)


class Training:
    """A trainer in a world of its own, and what he has beside batches: rows and evaluation."""

    def __init__(self, rules: Rules, course: Course, dice: random.Random) -> None:
        self.world = World(rules)
        self.audit = Audit(self.world)
        self._course = course
        self._dice = dice
        self._rows: list[Caller] = []
        self._others: list[Caller] = []

    def train(self, steps: int) -> None:
        """Take so many batches, and raise the version after each."""
        for _ in range(steps):
            self._do_something_else()
            if self._course.others and self._dice.random() < 0.3:
                self.world.moves_at_reads.extend(self._dice.choice([[1], [1, 1], [2]]))
            batch = self.world.prepare_batch(
                self._next_script,
                dynamic=self._course.dynamic,
                group_size=self._course.group_size,
                keep_rest=self._course.keep_rest,
            )
            assert not self.world.moves_at_reads
            self._give_some_back(len(batch))
            self.world.clock.pass_over(self._dice.choice([0.0, 1.0]))
            self.world.rise()

    def finish(self) -> None:
        """Let all end, and see that nothing is left."""
        world = self.world
        world.post(world.core.end, RunnerStoppedError)
        while world.clock.step():
            pass
        for caller in (*self._rows, *self._others):
            while caller.look():
                pass
            assert caller.is_done
        for is_eval in (False, True):
            finished = [one for one in world.core.delivery.finished() if one.lane is not Lane.BATCH]
            rest = sum(one.plan.is_eval == is_eval for one in finished)
            if rest:
                assert Caller(world, Request(Want.ENDED, rest, is_eval)).look()
        for_batches = len(world.core.delivery._batch)
        if for_batches:
            assert Caller(world, world.batch_request(for_batches, dynamic=self._course.dynamic)).look()
        self.audit.check_all_collected()

    def _next_script(self) -> Script:
        return Script(tuple(self._next_act() for _ in range(self._course.group_size)))

    def _next_act(self) -> Act:
        dice, course = self._dice, self._course
        return Act(
            seconds=dice.lognormvariate(0.0, course.sigma),
            ending="tokens" if dice.random() < course.brings else dice.choice(ENDINGS),
            segments=dice.randint(1, 3),
            has_versions=dice.random() < 0.8,
            has_mask=dice.random() < 0.8,
            swallows_s=dice.choice([0.0, 0.0, 2.0]),
            back=dice.choice([0, 0, 0, 1]) if course.others else 0,
        )

    def _do_something_else(self) -> None:
        had_rows = bool(self._rows)
        for caller in (*self._rows, *self._others):
            while caller.look():
                pass
        self._rows = [one for one in self._rows if not one.is_done]
        self._others = [one for one in self._others if not one.is_done]
        if not self._course.others:
            return
        rules, world = self.world.rules, self.world
        # Rows cost when they are delivered: so many that a batch still fits into what a version may cost.
        if rules.max_staleness and not had_rows:
            self._rows.append(self._ask_for_rows(self._dice.randint(1, rules.batch), is_eval=False))
        self._others.append(self._ask_for_rows(2, is_eval=True))
        world.submit(self._next_script(), is_eval=True)
        self._others.append(Caller(world, Request(Want.ENDED, 1, is_eval=True)))

    def _ask_for_rows(self, count: int, is_eval: bool) -> Caller:
        rows = [self.world.make(self._next_script(), Lane.ROW, is_eval=is_eval) for _ in range(count)]
        return self.world.row_caller(rows)

    def _give_some_back(self, delivered: int) -> None:
        if self._course.others:
            self.world.core.give_back(self._dice.randint(0, delivered))
            self.world.wake()


@settings(max_examples=120)
@given(
    some_rules(max_failures=10_000, max_unaccepted=10_000, most_started=100), COURSES, st.integers(0, 2**32)
)
def test_the_next_batch_always_comes(rules: Rules, course: Course, seed: int) -> None:
    """...where the version rises only after a batch, or now and then, and something is accepted."""
    training = Training(rules, course, random.Random(seed))
    training.train(steps=12)
    assert training.world.ledger.accepted >= 12
    assert not training.world.told.stalls
    training.finish()


@settings(max_examples=60)
@given(
    some_rules(
        max_failures=10_000,
        max_unaccepted=10_000,
        max_staleness=st.integers(1, 4),
        most_samples=st.sampled_from([None, None, 5]),
        most_started=100,
        straggler_wait_s=math.inf,
    ),
    COURSES,
    st.integers(0, 2**32),
)
def test_whoever_waits_for_all_stragglers_loses_nothing(rules: Rules, course: Course, seed: int) -> None:
    """...also where some take so long that they would be too old only for the batches after the next."""
    course = replace(course, others=False, sigma=2 * course.sigma, brings=max(course.brings, 0.7))
    training = Training(rules, course, random.Random(seed))
    training.train(steps=20)
    assert training.world.ledger.stale == training.world.ledger.requeued == 0
    report = training.world.core.tally.report()
    assert report.tokens_masked == 0 and report.wasted_seconds == 0.0
    assert report.staleness_max <= rules.max_staleness
    training.finish()


@settings(max_examples=60)
@given(some_rules(straggler_wait_s=math.inf, most_started=100), st.integers(0, 2**32))
def test_where_nothing_is_lost_admission_is_areals(rules: Rules, seed: int) -> None:
    """...rejects nothing, drops nothing, and takes a batch per version: then the capacities are equal."""
    training = Training(rules, Course(brings=1.0), random.Random(seed))
    audit = training.world.on_event
    seen = set()

    def compare() -> None:
        audit()
        capacity = training.world.core.budget.capacity
        assert capacity == training.world.manager.get_capacity()
        seen.add(capacity)

    training.world.on_event = compare
    training.train(steps=12)
    assert len(seen) > 1
