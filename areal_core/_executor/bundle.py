"""Do for many at once what need not be done at once: `Bundle`.

Of what is done when an episode has ended, between steps of others, all that it needs has left the processor's
caches: for one alone it takes several times as long as for one of many.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar

from areal_core import _process

T = TypeVar("T")

WAIT_S = 0.1
"""How long the first may wait for others."""

MOST = 64
"""How many may wait."""

_AT_A_TIME_S = 0.005  # a slow one must not keep the loop from all else, many times over


class Bundle(Generic[T]):
    """Hands what is `put` into it on to *take*, in order, many at a time. *take* does not raise.

    For the thread that owns the core; `flush` is for any.
    """

    def __init__(self, take: Callable[[T], object]) -> None:
        self._take = take
        self._held: deque[T] = deque()
        self._hurries = False
        self._has_timer = False
        self._can_wait = True
        self._home = _process.home()

    def begin(self) -> None:
        """Let things wait from now on: there is a loop that will come to them."""
        self._can_wait = True
        self._has_timer = False  # that of a loop before

    def end(self) -> None:
        """Let nothing wait from now on: the loop may never come to it."""
        self._can_wait = False

    def put(self, one: T, hurries: bool = False) -> None:
        """Keep *one* until `hand_on`; one that *hurries* lets nothing wait then."""
        self._held.append(one)
        self._hurries = self._hurries or hurries

    def hand_on(self) -> None:
        """Hand on what is here, if it is much or in a hurry; else have that done soon."""
        if not self._held:
            return
        if self._hurries or not self._can_wait:
            Context().run(self.flush)  # where this is called an episode may be bound
        elif len(self._held) >= MOST:
            Context().run(self._hand_on_some)
        else:
            self._set_timer(WAIT_S)

    def _set_timer(self, delay_s: float) -> None:
        if self._has_timer:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # it runs no more
            Context().run(self.flush)
            return
        self._has_timer = True
        loop.call_later(delay_s, self._on_time, context=Context())

    def _on_time(self) -> None:
        self._has_timer = False
        self._hand_on_some()

    def _hand_on_some(self) -> None:
        """Hand on for a few milliseconds, or until no more is left than may wait; the rest a turn later."""
        until = time.monotonic() + _AT_A_TIME_S
        while self._next() and (len(self._held) >= MOST or time.monotonic() < until):
            pass
        if self._held:
            self._set_timer(0.0)

    def flush(self) -> None:
        """Hand on all that is here; from any thread, and not in a forked child, whose parent does it."""
        self._hurries = False
        while self._next():
            pass

    def _next(self) -> bool:
        """Hand on one; return whether there was one to be handed on here."""
        if self._home is not _process.home():
            return False
        try:
            one = self._held.popleft()
        except IndexError:  # none is left, or another thread was faster
            return False
        self._take(one)
        return True
