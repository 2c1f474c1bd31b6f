"""What a trainer tells an executor beside its rollouts: to stop starting them, to go on, of a new version."""

from __future__ import annotations

from areal_core._executor.looking import Looking


class Steering(Looking):
    """The part of `WorkflowExecutor` that has it go on, or not."""

    def pause(self) -> None:
        """Stop starting rollouts. Those that run go on, and are delivered. Raises RunnerStoppedError."""
        self._steer("pause")

    def resume(self) -> None:
        """Start what may start. Raises RunnerStoppedError."""
        self._steer("resume")

    def is_paused(self) -> bool:
        """Return whether rollouts are kept from starting."""
        return self._shift is not None and self._on_shift().is_paused()

    def on_version_changed(self) -> None:
        """Look at the policy version: there may be new budget.

        A version provider that has ``subscribe`` tells by itself, as `RemoteInfEngine` does; for any other
        this has to be called after each change. Raises RunnerStoppedError.
        """
        self._on_shift().versions.look()

    def reset_failures(self) -> None:
        """Go on after a FailureBudgetError, and count failures anew. Raises RunnerStoppedError."""
        self._steer("reset_failures")

    def _steer(self, event: str) -> None:
        shift = self._on_shift()
        shift.raise_if_ended()
        shift.desk.call(getattr(shift.desk.core, event))
