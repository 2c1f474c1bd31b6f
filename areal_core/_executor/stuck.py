"""When no rollout has ended for long: it is said, and again after twice as long each time."""

from __future__ import annotations

from collections.abc import Callable

from areal_core._executor.port import EARLY_S, Clock, Timer


class StuckWatch:
    """Notes when a rollout ended last, and calls `say` when that is too long ago.

    It is told by the thread that owns the core. All rollouts together have one timer, set while there are
    any. *warning_s* None: it only notes. *is_over* says whether the clock takes no timers any more.
    """

    __slots__ = (
        "_clock",
        "_due_s",
        "_is_over",
        "_open",
        "_since",
        "_timer",
        "_warned_of",
        "_warning_s",
        "say",
    )

    def __init__(self, warning_s: float | None, clock: Clock, is_over: Callable[[], bool]) -> None:
        self._warning_s = warning_s
        self._clock = clock
        self.say: Callable[[], None] = lambda: None
        """Called when no rollout has ended for long."""
        self._is_over = is_over
        self._open = 0  # rollouts that run or wait to start
        self._since = 0.0
        self._timer: Timer | None = None
        self._due_s = 0.0  # after how long it says so next
        self._warned_of: float | None = None  # which end was the last when it did

    @property
    def seconds(self) -> float:
        """How long no rollout has ended though there were some; 0 while there are none."""
        return self._clock.time() - self._since if self._open else 0.0

    def began_to_wait(self) -> None:
        """One more waits to start."""
        if not self._open:
            self._since = self._clock.time()
            if self._timer is None and self._warning_s is not None and not self._is_over():
                self._set_timer(self._warning_s)
        self._open += 1

    def ended(self) -> None:
        """One of them has ended."""
        self._open -= 1
        self._since = self._clock.time()

    def _ring(self) -> None:
        self._timer = None
        if not self._open or self._warning_s is None or self._is_over():
            return
        if self._warned_of != self._since:
            self._warned_of, self._due_s = None, self._warning_s
        if self.seconds + EARLY_S >= self._due_s:
            self._warned_of = self._since
            self._due_s *= 2
            self.say()
        self._set_timer(self._due_s - self.seconds)

    def _set_timer(self, delay_s: float) -> None:
        self._timer = self._clock.call_later(max(EARLY_S, delay_s), self._ring)
