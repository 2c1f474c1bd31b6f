"""The clock that generations run by: it stands still while they are frozen."""

from __future__ import annotations

import time
from collections.abc import Callable


class RunningClock:
    """Count the seconds in which generations ran."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._stood_s = 0.0
        self._frozen_at: float | None = None

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self._frozen_at is not None

    def now(self) -> float:
        """Return the seconds it has run."""
        return (self._monotonic() if self._frozen_at is None else self._frozen_at) - self._stood_s

    def freeze(self) -> None:
        """Stand still; nothing happens if it does."""
        if self._frozen_at is None:
            self._frozen_at = self._monotonic()

    def thaw(self) -> None:
        """Go on; nothing happens if it does."""
        if self._frozen_at is not None:
            self._stood_s += self._monotonic() - self._frozen_at
            self._frozen_at = None
