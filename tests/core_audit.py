"""What has to be true of a core at every moment, reckoned anew from what is to be seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from areal_core._executor.books import RolloutLedger
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout, State
from areal_core._executor.rules import Rules
from core_world import World


class Audit:
    """Watches a world, and fails where a rule is broken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.delivered: dict[int, RolloutOutcome] = {}
        """What callers got, by id."""
        self.consumed = 0
        """Units of the budget that callers got at this version of the provider, those of rows not."""
        self.oldest = 0
        """The greatest staleness of what was delivered to be trained on."""
        world.on_event = self.check
        world.on_delivery = self.check_delivery
        world.told.on_began = self._check_admission

    # -- at any moment -----------------------------------------------------------------------------

    def check(self) -> None:
        """Check everything that holds between two events."""
        core = self.world.core
        self._check_books(self.world.ledger, is_eval=False)
        self._check_books(self.world.eval_ledger, is_eval=True)
        self._check_budget()
        self._check_ages()
        self._check_manager()
        for rollout in core._rollouts.values():
            if rollout.plan.is_eval:
                assert not rollout.is_charged and not rollout.is_doomed
                assert rollout.outcome is None or rollout.outcome.status != "stale"
        assert len(core.scheduler.running) == self.world.ledger.running + self.world.eval_ledger.running

    def _check_books(self, ledger: RolloutLedger, is_eval: bool) -> None:
        counts = asdict(ledger)
        assert min(counts.values()) >= 0, counts
        assert balanced(ledger), counts
        core = self.world.core
        line = core.scheduler.evaluation if is_eval else core.scheduler.training
        pending = line.all_pending()
        running = _of(core.scheduler.running.values(), is_eval)
        finished = _of(core.delivery.finished(), is_eval)
        assert (len(pending), len(running), len(finished)) == (
            ledger.pending,
            ledger.running,
            ledger.finished,
        )
        assert {one.state for one in pending} <= {State.PENDING}
        assert {one.state for one in running} <= {State.RUNNING}
        assert {one.state for one in finished} <= {State.FINISHED}
        there = [one.task_id for one in (*pending, *running, *finished)]
        assert len(set(there)) == len(there)
        assert line.pending == len(pending)
        assert line.of_batches == sum(one.lane is Lane.BATCH for one in pending)

    def _check_budget(self) -> None:
        core, rules = self.world.core, self.world.rules
        budget, running = core.budget, core.scheduler.running.values()
        finished = [one for one in core.delivery.finished() if one.is_charged]
        assert budget.running == sum(one.is_charged for one in running)
        assert budget.waiting == len(finished)
        for rollout in running:
            costs = rollout.lane is not Lane.ROW and not rollout.plan.is_eval and not rollout.is_doomed
            assert rollout.is_charged == costs
        assert all(
            one.is_accepted or (core._serving.is_dynamic and one.lane is Lane.BATCH) for one in finished
        )
        assert budget.consumed >= 0
        assert budget.running + budget.waiting <= rules.most_units  # what is in memory
        alive = list(self.world.stage.plays)
        evals = sum(one.rollout.plan.is_eval for one in alive)
        assert (budget.samples, budget.eval_samples) == (len(alive) - evals, evals)
        assert len(alive) <= rules.most_started
        if rules.most_samples is not None:
            assert max(budget.samples, budget.eval_samples) <= rules.most_samples

    def _check_admission(self, rollout: Rollout) -> None:
        budget = self.world.core.budget
        assert budget.version <= self.world.version
        if rollout.is_charged:
            assert budget.units >= 0

    def _check_ages(self) -> None:
        """Check that nothing takes up memory or budget that can only bring what is too old."""
        core, rules = self.world.core, self.world.rules
        if rules.on_stale == "keep":
            return
        least = core.budget.version - rules.max_staleness
        for rollout in _of(core.delivery.finished(), is_eval=False):
            if rollout.is_accepted:
                assert _youngest_needed(rollout, rules.on_stale) >= least
            elif rollout.is_charged:
                assert rollout.start_version >= least
        for rollout in _of(core.scheduler.running.values(), is_eval=False):
            if rollout.start_version < least and not rollout.is_ending:
                assert rules.on_stale == "mask"
                sent = [one.record.newest_version for one in rollout.episodes]
                assert any(version is not None and version >= least for version in sent)

    def _check_manager(self) -> None:
        stat, ledger, told = self.world.manager.get_stats(), self.world.ledger, self.world.told
        assert (stat.enqueued, stat.running) == (ledger.pending, ledger.running)
        assert stat.accepted == ledger.accepted
        ended = ledger.rejected + ledger.failed + ledger.timed_out + ledger.cancelled + ledger.stale
        assert stat.rejected == ended - told.went_stale_for_good + told.in_vain

    # -- what callers get --------------------------------------------------------------------------

    def check_delivery(self, request: Request, outcomes: list[RolloutOutcome]) -> None:
        """Check what a caller gets, at the moment he does."""
        world = self.world
        rollouts = list(request.rollouts)
        assert [one.task_id for one in outcomes] == [one.task_id for one in rollouts]
        for rollout, outcome in zip(rollouts, outcomes, strict=True):
            assert outcome.task_id not in self.delivered, "delivered twice"
            self.delivered[outcome.task_id] = outcome
            assert rollout.state is State.COLLECTED
            assert outcome.is_eval == rollout.plan.is_eval == request.is_eval
            self._check_outcome(rollout, outcome)
        self._check_choice(request, rollouts)
        if not request.is_eval:
            assert request.version == world.last_read

    def _check_choice(self, request: Request, rollouts: list[Rollout]) -> None:
        assert len(rollouts) == request.count
        if request.want is Want.CLAIMED:
            assert [one.task_id for one in rollouts] == list(request.claims)
        elif request.want is Want.ENDED:
            assert all(one.lane is not Lane.BATCH for one in rollouts)
        else:
            assert all(one.lane is Lane.BATCH for one in rollouts)
            accepted = sum(one.is_accepted for one in rollouts)
            assert accepted >= 1 if request.dynamic else accepted == request.count
            assert [one.age for one in rollouts] == sorted(one.age for one in rollouts)

    def _check_outcome(self, rollout: Rollout, outcome: RolloutOutcome) -> None:
        rules, original = self.world.rules, rollout.outcome
        assert original is not None and (outcome.trajectory is not None) == (outcome.status == "accepted")
        if original.trajectory is None or outcome.trajectory is None:
            return
        if outcome.is_eval or rules.on_stale == "keep":
            assert outcome.trajectory is original.trajectory
            return
        assert (rollout.task_id, rollout.requeues) not in self.world.gone
        least = self.world.last_read - rules.max_staleness
        versions = trained_versions(outcome.trajectory, rollout.start_version)
        before = trained_versions(original.trajectory, rollout.start_version)
        assert versions == [version for version in before if version >= least]
        assert bool(versions) == bool(before)
        oldest = min(versions, default=rollout.start_version)
        assert oldest >= least
        self.oldest = max(self.oldest, self.world.last_read - oldest)
        assert outcome.tokens_masked == len(before) - len(versions)
        if rules.on_stale != "mask" or not outcome.tokens_masked:
            assert outcome.trajectory is original.trajectory

    # -- at the end --------------------------------------------------------------------------------

    def check_all_collected(self) -> None:
        """Check that every id had exactly one outcome, that callers have all, and nothing is left."""
        left = set(self.world.core._rollouts)
        for rollout in self.world.rollouts:
            if rollout.lane is Lane.BATCH and not rollout.is_accepted:
                assert rollout.outcome is not None
                left.discard(rollout.task_id)  # nobody wants it, and the next batch would count it
            elif not rollout.is_submitted:  # its caller was told to give up at once
                assert rollout.lane is Lane.ROW and rollout.task_id not in self.delivered
            else:
                assert rollout.state is State.COLLECTED and rollout.task_id in self.delivered, rollout
        assert not left
        budget = self.world.core.budget
        assert not self.world.stage.plays
        assert (budget.samples, budget.eval_samples, budget.running, budget.waiting) == (0, 0, 0, 0)


def balanced(ledger: RolloutLedger) -> bool:
    """Return whether both equations hold."""
    there = ledger.pending + ledger.running + ledger.finished + ledger.collected + ledger.discarded
    ended = (
        ledger.accepted + ledger.rejected + ledger.failed + ledger.timed_out + ledger.cancelled + ledger.stale
    )
    return ledger.submitted == there and ended == ledger.finished + ledger.collected + ledger.discarded


def trained_versions(trajectory: dict[str, Any], start_version: int) -> list[int]:
    """Return the version of each token that is trained on; that of the start where there are none."""
    versions, mask = trajectory.get("versions"), trajectory.get("loss_mask")
    if versions is None:
        return [start_version]
    flags = np.ones(versions.shape) if mask is None else mask
    pairs = zip(versions.ravel().tolist(), flags.ravel().tolist(), strict=True)
    return [version for version, flag in pairs if flag and version >= 0]


def _youngest_needed(rollout: Rollout, on_stale: str) -> int:
    assert rollout.outcome is not None and rollout.outcome.trajectory is not None
    versions = trained_versions(rollout.outcome.trajectory, rollout.start_version)
    if not versions:
        return rollout.start_version
    return max(versions) if on_stale == "mask" else min(versions)


def _of(rollouts: Iterable[Rollout], is_eval: bool) -> list[Rollout]:
    return [one for one in rollouts if one.plan.is_eval == is_eval]


def a_world(*, version: int = 0, **rules: Any) -> World:
    """Return an audited world: a batch is 2, and may be 1 version old, unless *rules* say otherwise."""
    fields = {"batch": 2, "max_staleness": 1, "most_samples": None, "most_started": 100, **rules}
    world = World(Rules(**fields), version=version)
    Audit(world)
    return world
