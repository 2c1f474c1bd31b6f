"""Wait for the disk where a Ctrl-C may come: `Flush`."""

from __future__ import annotations

from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate
from areal_core.errors import JournalError


class Flush:
    """Somebody who waits until what was put is durable. A Ctrl-C in `wait` leaves no lock held."""

    def __init__(self, target: int, attempts: int) -> None:
        self.target = target
        """How many records have to be durable."""
        self.attempts = attempts
        """How many attempts had begun before."""
        self.failure: JournalError | None = None
        self._gate = Gate()

    def wait(self, timeout: float | None = None) -> None:
        """Wait. Raises like `Writer.flush`."""
        if not self._gate.wait(timeout):
            raise TimeoutError(
                f"the journal was not on the disk within {timeout} s; wait longer, or look at the disk"
            )
        exit_hook.stay_if_over()
        if self.failure is not None:
            raise JournalError(str(self.failure)) from self.failure

    def answer(self, failure: JournalError | None) -> None:
        """Let who waits go on, with *failure* if it failed."""
        self.failure = failure
        self._gate.open()
