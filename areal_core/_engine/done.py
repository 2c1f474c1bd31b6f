"""The generations of an engine that have ended, counted: `Done`."""

from __future__ import annotations

import threading

from areal_core._engine.generation import Generation


class Done:
    """Counts generations that have ended, on any loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end one in here
        self.ended = 0
        self.failed = 0
        self.cancelled = 0
        self.attempts = 0
        self.tokens = 0

    def count(self, generation: Generation) -> None:
        """Count one, whatever came of it."""
        with self._lock:
            self.ended += 1
            self.failed += generation.has_failed
            self.cancelled += not (generation.is_complete or generation.has_failed)
            self.attempts += generation.attempts
            self.tokens += generation.tokens_so_far
