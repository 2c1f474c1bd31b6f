"""When nothing can go on before the version rises: it is said at once, and given up after a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from areal_core._executor.budget import Budget
from areal_core._executor.port import EARLY_S, Clock, Timer, Witness
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, State
from areal_core._executor.rules import Rules
from areal_core.errors import AdmissionStalledError


class Standstill:
    """Watches requests that only a new version can serve; *on_over* is called when one waited too long."""

    def __init__(
        self, rules: Rules, budget: Budget, clock: Clock, witness: Witness, on_over: Callable[[], None]
    ) -> None:
        self._rules = rules
        self._budget = budget
        self._clock = clock
        self._witness = witness
        self._on_over = on_over
        self._timer: Timer | None = None
        self._next: float | None = None  # when it comes
        self._said_at: int | None = None  # the last version at which it was said

    def see(self, requests: Iterable[Request], is_paused: bool) -> None:
        """Look at the requests that are open."""
        before, self._next = self._next, None
        for request in requests:
            if is_paused or not self._stalls(request):
                request.gives_up_at = None
                continue
            if request.gives_up_at is None:
                request.gives_up_at = self._clock.time() + self._rules.stall_timeout_s
            self._next = min(self._next or request.gives_up_at, request.gives_up_at)
        if self._next is not None and self._said_at != self._budget.version:
            self._said_at = self._budget.version
            self._witness.stalled(str(self.error()))
        if before != self._next:
            self._set_timer()

    def is_over(self, request: Request) -> bool:
        """Return whether *request* has waited long enough for a version."""
        return request.gives_up_at is not None and request.gives_up_at <= self._clock.time() + EARLY_S

    def _stalls(self, request: Request) -> bool:
        """Return whether *request* needs what may not start at this version, and nothing runs."""
        if request.is_eval or self._budget.samples or self._budget.units > 0:
            return False
        if request.want is not Want.CLAIMED:
            return True
        return any(one.state is State.PENDING and one.lane is not Lane.ROW for one in request.claim.rollouts)

    def error(self) -> AdmissionStalledError:
        """Make the error to raise, a new one for each caller."""
        return AdmissionStalledError(
            limit=self._rules.most_units,
            version=self._budget.version,
            waiting=self._budget.waiting,
            consumed=self._budget.consumed,
        )

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._next is not None:
            self._timer = self._clock.call_later(max(0.0, self._next - self._clock.time()), self._on_over)
