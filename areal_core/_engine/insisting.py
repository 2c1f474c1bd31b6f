"""Calls that have to get through: made again when a server cannot just now, and ended in time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from areal_core.errors import InferenceError

AFTER_CANCELLATION_S = 2.0
"""For how long a task that was cancelled goes on: less than its grace."""


T = TypeVar("T")


async def insist(
    between_tries_s: Sequence[float],
    again: Callable[[InferenceError], bool],
    make: Callable[..., Coroutine[Any, Any, T]],
    /,
    *args: Any,
) -> T:
    """Return what ``make(*args)`` does; while it fails with what calls for it *again*, repeat it in a while.

    *make* is an async function, no other that returns a coroutine. Raises the last error.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, InferenceError) and again(error)),
        wait=wait_chain(*map(wait_fixed, between_tries_s)),
        stop=stop_after_attempt(1 + len(between_tries_s)),
        reraise=True,
    )
    return await retrying(make, *args)
