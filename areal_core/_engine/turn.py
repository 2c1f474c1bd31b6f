"""One at a time, in order, whatever loops the callers are on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from types import TracebackType


class Turn:
    """A lock for tasks on any loop: asyncio's own belongs to one."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may end a waiting coroutine in the middle of anything here.
        self._lock = threading.RLock()
        self._taken = False
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        mine = (loop, loop.create_future())
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            self._waiting.append(mine)
        try:
            await mine[1]
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
                loop, turn = self._waiting.popleft()
                with contextlib.suppress(RuntimeError):  # its loop is closed: the next one
                    loop.call_soon_threadsafe(_set_done, turn)
                    return
            self._taken = False


def _set_done(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
