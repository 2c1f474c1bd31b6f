"""Why a runner does nothing more."""

from __future__ import annotations

from dataclasses import dataclass

from areal_core.errors import RunnerDiedError, RunnerStoppedError


@dataclass(frozen=True, slots=True)
class Ending:
    """Why nothing more will start: *cause* is None when the runner was stopped rather than broken."""

    message: str
    cause: BaseException | None = None

    def error(self) -> RunnerStoppedError | RunnerDiedError:
        """Make the error to raise, a new one for each caller."""
        if self.cause is None:
            return RunnerStoppedError(self.message)
        died = RunnerDiedError(f"{self.message}: {self.cause!r}; initialize() starts it again")
        died.__cause__ = self.cause
        return died
