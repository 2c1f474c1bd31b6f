"""Calls that have to get through: made again when a server cannot just now, and ended in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from areal_core.errors import InferenceError

AFTER_CANCELLATION_S = 2.0
"""For how long a task that was cancelled goes on: less than its grace."""


async def insist(
    make: Callable[[], Awaitable[object]],
    between_tries_s: Sequence[float],
    again: Callable[[InferenceError], bool],
) -> None:
    """Make a call; while it fails with what calls for it *again*, repeat it after each of these times.

    Raises the last error.
    """
    for pause_s in between_tries_s:
        try:
            await make()
        except InferenceError as error:
            if not again(error):
                raise
            await asyncio.sleep(pause_s)
        else:
            return
    await make()
