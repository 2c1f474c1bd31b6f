"""Which failure of a generation may be tried again, and after how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from areal_core.errors import ArealError, ServerStatusError, ServerUnreachableError

# 300 clients that fail at once must not come back at once: with a base under 0.75 s too many of them
# would share a tenth of a second. Full jitter: from 0 to the whole delay.
_BASE_S = 1.0
_MOST_S = 30.0

_full_jitter = wait_random_exponential(multiplier=_BASE_S, max=_MOST_S)

_BUSY = (429, 503)
"""The server did not begin: the same attempt may be made again, there."""

_TRY_AGAIN = (408, 425, *_BUSY)

# What another attempt will not meet again may be met once per server or connection, not for ever.
_AT_ONCE_IN_A_ROW = 5


class EmptyAbortError(ArealError):
    """A server ended an attempt that had made no token, though nobody here asked for it."""


class AtOnceError(ArealError):
    """An attempt was lost to something that another attempt will not meet again."""


def did_not_begin(error: ServerStatusError) -> bool:
    """Return whether a server that has sent no token refused to begin, so that nothing runs there."""
    return error.status in _BUSY or not may_try_again(error)


def may_try_again(error: BaseException) -> bool:
    """Return whether another attempt may fare better."""
    if isinstance(error, ServerStatusError):
        return error.status in _TRY_AGAIN or error.status >= 500
    if isinstance(error, ServerUnreachableError):
        return error.server is not None
    return isinstance(error, EmptyAbortError | AtOnceError)


class Patience:
    """How long to go on: *retries* failures in a row, and *left_s* seconds, sleep included.

    *asked_s* says how long to leave a server alone after an error. Empty aborts, and what another attempt
    will not meet again, are no failures.
    """

    def __init__(
        self, retries: int, left_s: Callable[[], float], asked_s: Callable[[BaseException | None], float]
    ) -> None:
        self._retries = retries
        self._left_s = left_s
        self._asked_s = asked_s
        self._failures = 0
        self._at_once = 0  # in a row
        self.out_of_time = False
        """Whether it was time that ran out."""

    def retrying(
        self,
        about_to_sleep: Callable[[RetryCallState], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> AsyncRetrying:
        """Return what repeats an attempt while that may help, and else raises its error as it is."""
        return AsyncRetrying(
            retry=retry_if_exception(may_try_again),
            wait=self._wait,
            stop=self._is_enough,
            before_sleep=about_to_sleep,
            sleep=sleep,
            reraise=True,
        )

    def _is_enough(self, state: RetryCallState) -> bool:
        self._failures += not isinstance(_error_of(state), EmptyAbortError | AtOnceError)
        if self._failures > self._retries:
            return True
        self.out_of_time = state.upcoming_sleep >= self._left_s()
        return self.out_of_time

    def _wait(self, state: RetryCallState) -> float:
        error = _error_of(state)
        self._at_once = self._at_once + 1 if isinstance(error, AtOnceError) else 0
        if 0 < self._at_once <= _AT_ONCE_IN_A_ROW:
            return 0.0
        # On top, or all who were told the same would come back together.
        return self._asked_s(error) + _full_jitter(state)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
