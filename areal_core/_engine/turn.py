"""One at a time, in order, whatever loops the callers are on."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType

from areal_core._engine.waking import wake


class Turn:
    """A lock for tasks on any loop: asyncio's own belongs to one."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a waiting coroutine in the middle of anything here.
        self._lock = threading.RLock()
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_taken(self) -> bool:
        """Whether it is somebody's turn."""
        return self._taken

    async def __aenter__(self) -> None:
        mine = asyncio.get_running_loop().create_future()
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            self._waiting.append(mine)
        try:
            await mine
        except BaseException:
            with self._lock:
                waits = mine in self._waiting
                if waits:
                    self._waiting.remove(mine)
            if not waits:
                self._pass_on()  # it was this one's turn already
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            while self._waiting:
                if wake(self._waiting.popleft()):  # else the next one
                    return
            self._taken = False
