"""Which rollouts are too old at the policy version of the moment, finished or not."""

from __future__ import annotations

from areal_core._executor.budget import Budget
from areal_core._executor.freshness import is_too_old
from areal_core._executor.rollout import LOST, Lane, Rollout
from areal_core._executor.rules import Rules


class Ageing:
    """Judges training rollouts by the rules and the version; evaluation has no age.

    Where the version *fell*, the trainer went back behind versions that there were: what has to do with those
    is as good as too old.
    """

    def __init__(self, rules: Rules, budget: Budget) -> None:
        self._rules = rules
        self._budget = budget

    def bound_of(self, rollout: Rollout) -> int | None:
        """Return how stale what is trained on may be; None: as it likes."""
        return None if rollout.plan.is_eval or self._rules.on_stale == "keep" else self._rules.max_staleness

    def is_too_old(self, rollout: Rollout) -> bool:
        """Return whether nothing of one that was accepted may be trained on."""
        if rollout.plan.is_eval:
            return False
        return is_too_old(rollout.ages, rollout.start_version, self._rules.on_stale, self._least)

    def is_spent(self, attempt: Rollout) -> bool:
        """Return whether one without a result counts no more: it does as long as a trajectory would."""
        return self._rules.on_stale != "keep" and attempt.start_version < self._least

    def has_expired(self, rollout: Rollout, fell: bool) -> bool:
        """Return whether one that is finished, and takes up budget or memory, is not to be delivered."""
        if not rollout.is_accepted and not rollout.is_charged:
            return False
        if fell and self._is_of_the_future(rollout):
            return True
        return self.is_too_old(rollout) if rollout.is_accepted else self.is_spent(rollout)

    def is_doomed(self, rollout: Rollout, fell: bool) -> bool:
        """Return whether nothing that one that runs may still bring is young enough."""
        if rollout.is_ending or self.bound_of(rollout) is None:
            return False
        if fell and self._is_of_the_future(rollout):
            return True
        if rollout.start_version >= self._least:
            return False
        newest = _newest_sent(rollout)
        return self._rules.on_stale != "mask" or newest is None or newest < self._least

    def may_run_again(self, rollout: Rollout) -> bool:
        """Return whether *rollout*, which is too old, is to be played once more."""
        if rollout.is_recovered:
            return rollout.data is not LOST
        wanted = rollout.lane is Lane.ROW or self._rules.on_stale == "requeue"
        return wanted and rollout.requeues < self._rules.max_requeues

    def why(self, rollout: Rollout) -> str:
        """Say why one that is too old is."""
        version = self._budget.version
        if rollout.start_version > version:
            return (
                f"started at version {rollout.start_version}, behind which the trainer went back to {version}"
            )
        return (
            f"started at version {rollout.start_version}; too much of it is older than version "
            f"{self._least}, the oldest that version {version} may be trained on"
        )

    @property
    def _least(self) -> int:
        """The oldest version that may be trained on."""
        return self._budget.version - self._rules.max_staleness

    def _is_of_the_future(self, rollout: Rollout) -> bool:
        if self.bound_of(rollout) is None:
            return False
        versions = rollout.start_version, rollout.ages.newest, _newest_sent(rollout)
        return any(version is not None and version > self._budget.version for version in versions)


def _newest_sent(rollout: Rollout) -> int | None:
    """Return the version at which the last request for tokens was sent, as far as its members say."""
    sent = [member.record.newest_version for member in rollout.episodes]
    return max((version for version in sent if version is not None), default=None)
