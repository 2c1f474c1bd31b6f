"""A coroutine with a limit of time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

R = TypeVar("R")


async def within(timeout_s: float | None, async_fn: Callable[..., Awaitable[R]], args: tuple[Any, ...]) -> R:
    """Return what ``async_fn(*args)`` returns; after *timeout_s* seconds cancel it. None: no limit.

    Raises what it raises, and TimeoutError when its time is up.
    """
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await async_fn(*args)
    except TimeoutError:
        if not limit.expired():
            raise  # its own
        raise TimeoutError(f"{async_fn!r} did not end within {timeout_s:g} s; give it longer") from None
