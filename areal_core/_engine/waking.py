"""Wake tasks that wait on loops of their own, from whatever thread."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes all that sleep on it. Any thread may ring."""

    def __init__(self) -> None:
        self._sleepers: set[asyncio.Future[None]] = set()
        self.last_ring = object()
        """Another one after each time it rang."""

    def ring(self) -> None:
        """Wake them."""
        self.last_ring = object()  # before looking: who begins to sleep meanwhile sees it
        for sleeper in tuple(self._sleepers):
            wake(sleeper)

    async def sleep(self, seconds: float, last_ring: object) -> None:
        """Sleep for *seconds*, or until it rings; not at all when it has rung since *last_ring*."""
        rung = asyncio.get_running_loop().create_future()
        self._sleepers.add(rung)
        try:
            if self.last_ring is last_ring:
                await asyncio.wait((rung,), timeout=seconds)
        finally:
            self._sleepers.discard(rung)


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
