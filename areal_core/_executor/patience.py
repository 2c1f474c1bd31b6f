"""When to give up: rollouts that fail one after the other, and a version that does not come."""

from __future__ import annotations

from collections import Counter

from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.rules import Rules
from areal_core._frames import traceback_of
from areal_core.errors import FailureBudgetError


class Patience:
    """Counts training rollouts in the order they end, and says when too many brought nothing."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self._failures = 0
        self._unaccepted = 0
        self._kinds: Counter[str] = Counter()
        self._first_error: BaseException | None = None
        self._budget = ""

    @property
    def is_over(self) -> bool:
        """Whether a budget is used up."""
        return bool(self._budget)

    def error(self) -> FailureBudgetError:
        """Make the error to raise, a new one for each caller."""
        error = FailureBudgetError(
            f"one after the other, {self._failures} training rollouts failed and {self._unaccepted} brought "
            f"nothing, which is {self._budget}; mend what is wrong, then call reset_failures()",
            dict(self._kinds.most_common()),
        )
        error.__cause__ = self._first_error
        return error

    def note(self, outcome: RolloutOutcome) -> None:
        """Take note of the end of a training rollout, unless somebody cancelled it."""
        if self.is_over:
            return
        if outcome.status == "accepted":
            if self._unaccepted:
                self.reset()
            return
        self._unaccepted += 1
        if outcome.status == "rejected":
            self._failures = 0
        elif outcome.status != "stale":
            self._failures += 1
            if self._first_error is None:  # what it says of itself is the user's business
                self._first_error = outcome.error
        self._kinds[_kind_of(outcome)] += 1
        if self._failures >= self._rules.max_failures:
            self._budget = f"max_consecutive_failures={self._rules.max_failures}"
        elif self._unaccepted >= self._rules.max_unaccepted:
            self._budget = f"max_consecutive_unaccepted={self._rules.max_unaccepted}"


def _kind_of(outcome: RolloutOutcome) -> str:
    """Return what a histogram of endings counts it as: the type of its error and where that was raised."""
    error = outcome.error
    if error is None:
        return f"{outcome.status}: {outcome.reason}"
    trace = traceback_of(error)
    if trace is None:
        return type(error).__qualname__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{type(error).__qualname__} at {code.co_filename}:{trace.tb_lineno} in {code.co_name}"
