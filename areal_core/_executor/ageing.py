"""Which rollouts are too old at the policy version of the moment, finished or not, and why."""

from __future__ import annotations

from areal_core._executor.budget import Budget
from areal_core._executor.freshness import is_too_old
from areal_core._executor.rollout import LOST, Lane, Rollout
from areal_core._executor.rules import Rules


class Ageing:
    """Judges training rollouts by the rules and the version; evaluation has no age.

    *fell_to* is the version that the trainer went back to (None: it did not go back). The versions above it
    are no more, and what they made is as good as too old. Methods say why something is; None: it is not.
    """

    def __init__(self, rules: Rules, budget: Budget) -> None:
        self._rules = rules
        self._budget = budget

    def bound_of(self, rollout: Rollout) -> int | None:
        """Return how stale what is trained on may be; None: as it likes."""
        return None if rollout.plan.is_eval or self._rules.on_stale == "keep" else self._rules.max_staleness

    def why_too_old(self, rollout: Rollout) -> str | None:
        """Say why nothing of one that was accepted may be trained on."""
        on_stale = self._rules.on_stale
        if rollout.plan.is_eval or not is_too_old(rollout.ages, rollout.start_version, on_stale, self._least):
            return None
        return self._say_too_old(rollout)

    def is_spent(self, attempt: Rollout) -> bool:
        """Return whether one without a result counts no more: it does as long as a trajectory would."""
        return self._rules.on_stale != "keep" and attempt.start_version < self._least

    def why_expired(self, rollout: Rollout, fell_to: int | None) -> str | None:
        """Say why one that is finished, and takes up budget or memory, is not to be delivered."""
        if not rollout.is_accepted and not rollout.is_charged:
            return None
        why = self._why_no_more(rollout, fell_to)
        if why is not None or rollout.is_accepted:
            return why or self.why_too_old(rollout)
        return self._say_too_old(rollout) if self.is_spent(rollout) else None

    def why_doomed(self, rollout: Rollout, fell_to: int | None) -> str | None:
        """Say why nothing that one that runs may still bring is young enough."""
        if rollout.is_ending or self.bound_of(rollout) is None:
            return None
        why = self._why_no_more(rollout, fell_to)
        if why is not None or rollout.start_version >= self._least:
            return why
        newest = _newest_sent(rollout)
        is_spared = self._rules.on_stale == "mask" and newest is not None and newest >= self._least
        return None if is_spared else self._say_too_old(rollout)

    def may_run_again(self, rollout: Rollout) -> bool:
        """Return whether *rollout*, which is too old, is to be played once more."""
        if rollout.is_recovered:
            return rollout.data is not LOST
        wanted = rollout.lane is Lane.ROW or self._rules.on_stale == "requeue"
        return wanted and rollout.requeues < self._rules.max_requeues

    @property
    def _least(self) -> int:
        """The oldest version that may be trained on."""
        return self._budget.version - self._rules.max_staleness

    def _say_too_old(self, rollout: Rollout) -> str:
        return (
            f"started at version {rollout.start_version}; too much of it is older than version "
            f"{self._least}, the oldest that version {self._budget.version} may be trained on"
        )

    def _why_no_more(self, rollout: Rollout, fell_to: int | None) -> str | None:
        if fell_to is None or self.bound_of(rollout) is None:
            return None
        versions = {
            "started at": rollout.start_version,
            "has tokens of": rollout.ages.newest,
            "asked for tokens at": _newest_sent(rollout),
        }
        for what, version in versions.items():
            if version is not None and version > fell_to:
                return f"{what} version {version}, behind which the trainer went back to {fell_to}"
        return None


def _newest_sent(rollout: Rollout) -> int | None:
    """Return the version at which the last request for tokens was sent, as far as its members say."""
    sent = [member.record.newest_version for member in rollout.episodes]
    return max((version for version in sent if version is not None), default=None)
