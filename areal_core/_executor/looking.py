"""What an executor says of itself: counts, figures, explanations. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_core._executor import settings
from areal_core._executor.books import RolloutLedger
from areal_core._executor.desk import Desk
from areal_core._executor.explanation import CapacityExplanation, Explanation
from areal_core._executor.report import StalenessReport
from areal_core._executor.shift import Shift
from areal_core._executor.snapshot import Snapshot
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.errors import RunnerStoppedError
from areal_core.staleness_manager import StalenessManager


class Looking:
    """The part of `WorkflowExecutor` that any thread may ask at any time."""

    _runner: AsyncTaskRunner[Any]
    _manager: StalenessManager
    _shift: Shift | None
    _observers: list[Callable[[Desk], object]]

    @property
    def runner(self) -> AsyncTaskRunner[Any]:
        """What runs the rollouts; its ``run`` is for work beside them. They are not in its ledger."""
        return self._runner

    @property
    def staleness_manager(self) -> StalenessManager:
        """The one that is told of training rollouts. Its capacity is AReaL's; see `get_capacity`."""
        return self._manager

    @property
    def ledger(self) -> RolloutLedger:
        """The training rollouts: how many are where."""
        return RolloutLedger() if self._shift is None else self._on_shift().desk.ledgers()[0]

    @property
    def eval_ledger(self) -> RolloutLedger:
        """The evaluation rollouts: how many are where."""
        return RolloutLedger() if self._shift is None else self._on_shift().desk.ledgers()[1]

    def report(self) -> StalenessReport:
        """Return how stale what was delivered is, and what the bound costs."""
        return settings.NO_REPORT if self._shift is None else self._on_shift().report()

    def get_capacity(self) -> int:
        """Return how many rollouts of one sample may start now; negative after more than was planned for."""
        return self._on_shift().desk.read(lambda core: core.budget.capacity)

    def snapshot(self) -> Snapshot:
        """Return what goes on and what was done so far, in numbers, for programs and views.

        Raises RunnerStoppedError before ``initialize``.
        """
        return self._on_shift().observer.snapshot()

    def explain(self) -> Explanation:
        """Return what runs, where each of it is, and why nothing more starts; its ``str`` is for people.

        It works whatever hangs: the loop, a caller, or who asks. Raises RunnerStoppedError before
        ``initialize``.
        """
        return self._on_shift().explainer.explain()

    def explain_capacity(self) -> CapacityExplanation:
        """Return why no more rollouts start; its ``str`` is for people. Raises like `explain`."""
        return self._on_shift().explainer.capacity()

    def __repr__(self) -> str:
        state = self._runner.stats().state
        try:
            return f"<{type(self).__name__} {state} {self.ledger}>"
        except RunnerStoppedError:  # in a forked child
            return f"<{type(self).__name__} {state}>"

    def _on_shift(self) -> Shift:
        if self._shift is None:
            raise RunnerStoppedError("the executor was never initialized; call initialize(), or use `with`")
        self._shift.raise_if_abroad()
        return self._shift
