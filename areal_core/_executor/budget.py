"""How much may be under way: units of the staleness budget, and slots for samples.

A unit is one deliverable trajectory. At a version V all units that are running, waiting to be delivered,
or were delivered at V, are at most ``(max_staleness + 1) * batch``: whatever starts now can be trained on
within *max_staleness* versions. A new version forgets what was delivered before it, no matter how much that
was: unused budget is forfeited, over-use forgiven.
"""

from __future__ import annotations

from areal_core._executor.rules import Rules


class Budget:
    """The units and slots of one executor. It is told what happens; it decides nothing."""

    __slots__ = (
        "_falls",
        "_rules",
        "changes",
        "consumed",
        "eval_samples",
        "in_hand",
        "running",
        "samples",
        "version",
        "waiting",
    )

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.version = 0
        self.changes = 0
        """How often the version has changed. A trainer that went back may be at one that it was at before."""
        self._falls: list[tuple[int, int]] = []  # which change, to what; those that none as deep followed
        self.running = 0
        """Units that run."""
        self.waiting = 0
        """Units that have ended and are not delivered."""
        self.consumed = 0
        """Units delivered at this version, and those in hand."""
        self.in_hand = 0
        """Units given to callers who have not got them yet: they may come back, also at a later version."""
        self.samples = 0
        """Samples that run, in groups of any size."""
        self.eval_samples = 0
        """Samples of evaluation, which have as many slots of their own and cost no unit."""

    @property
    def units(self) -> int:
        """How many more units may start; negative after a larger batch than was planned for."""
        return self._rules.most_units - self.running - self.waiting - self.consumed

    @property
    def capacity(self) -> int:
        """How many new rollouts of one sample may start now."""
        most = self._rules.most_samples
        return self.units if most is None else min(most - self.samples, self.units)

    def has_slot(self, is_eval: bool) -> bool:
        """Return whether one more sample may run."""
        if self.samples + self.eval_samples >= self._rules.most_started:
            return False
        taken = self.eval_samples if is_eval else self.samples
        return self._rules.most_samples is None or taken < self._rules.most_samples

    def take_slot(self, is_eval: bool) -> None:
        """Count one more sample that runs."""
        if is_eval:
            self.eval_samples += 1
        else:
            self.samples += 1

    def free_slot(self, is_eval: bool) -> None:
        """Count one less."""
        if is_eval:
            self.eval_samples -= 1
        else:
            self.samples -= 1

    def set_version(self, version: int) -> None:
        """Begin a version, another than the last."""
        self.changes += 1
        if version < self.version:
            while self._falls and self._falls[-1][1] >= version:
                self._falls.pop()
            self._falls.append((self.changes, version))
        self.version = version
        self.consumed = self.in_hand

    def fell_to(self, since: int) -> int | None:
        """Return the lowest version that the trainer went back to after so many changes; None: to none."""
        lowest = None
        for change, version in reversed(self._falls):
            if change <= since:
                break
            lowest = version
        return lowest

    def give_back(self, count: int) -> None:
        """Free units that were delivered at this version and not trained on. Raises ValueError."""
        delivered = self.consumed - self.in_hand
        if count > delivered:
            raise ValueError(
                f"give_back({count}): only {delivered} trajectories were delivered at version "
                f"{self.version}; give back no more than that, before the version changes"
            )
        self.consumed -= count
