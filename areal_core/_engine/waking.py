"""Wake a task that waits for a future of its own loop, from whatever thread."""

from __future__ import annotations

import asyncio


def wake(future: asyncio.Future[None]) -> bool:
    """Have who waits for *future* go on; any thread may. Return whether its loop is there.

    Nothing happens when it is done.
    """
    try:
        future.get_loop().call_soon_threadsafe(set_done, future)
    except RuntimeError:  # the loop is closed: nobody waits there
        return False
    return True


def set_done(future: asyncio.Future[None]) -> None:
    """Do that on its own loop."""
    if not future.done():
        future.set_result(None)
