"""Whether a batch that is there waits for rollouts which would be too old for the batches after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from areal_core._executor.budget import Budget
from areal_core._executor.port import EARLY_S, Clock
from areal_core._executor.requests import Request
from areal_core._executor.rollout import Rollout
from areal_core._executor.rules import Rules


class Hold:
    """Delays a batch for ``straggler_wait`` seconds at most; *look_again* is called when that is over.

    *running* are the rollouts that run.
    """

    def __init__(
        self,
        rules: Rules,
        budget: Budget,
        clock: Clock,
        running: Callable[[], Collection[Rollout]],
        look_again: Callable[[], None],
    ) -> None:
        self._rules = rules
        self._budget = budget
        self._clock = clock
        self._running = running
        self._look_again = look_again

    def delays(self, request: Request, rest: Sequence[Rollout]) -> bool:
        """Return whether *request* has to wait, when *rest* would be left of what has ended."""
        if self._rules.straggler_wait_s == 0 or not self._leaves_too_many(rest):
            return False
        now = self._clock.time()
        if request.held_until is None:
            request.held_until = now + self._rules.straggler_wait_s
        if request.timer is None and now < request.held_until < math.inf:
            request.timer = self._clock.call_later(request.held_until - now, self._look_again)
        return now + EARLY_S < request.held_until

    def _leaves_too_many(self, rest: Sequence[Rollout]) -> bool:
        """Return whether some of what remains is running and would, batch after batch, come too late.

        With *more* batches to come before a version is too old, ``more * batch`` units of it may remain.
        """
        running = [one for one in self._running() if one.is_charged]
        least = self._budget.version - self._rules.max_staleness
        for more in range(self._rules.max_staleness + 1):
            late = sum(one.start_version <= least + more for one in running)
            done = sum(one.origin <= least + more for one in rest)
            if late and late + done > more * self._rules.batch:
                return True
        return False
