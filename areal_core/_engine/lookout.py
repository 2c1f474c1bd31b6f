"""On which loop the servers are looked after."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any

from areal_core._engine.events import Events
from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup

Loop = asyncio.AbstractEventLoop


class Lookout:
    """Keeps one prober, on a loop on which the engine is in use, for as long as there is one.

    On a loop without a use it stays only while there is none elsewhere: nothing tells when a loop stops.
    *begin* makes what the prober runs; *on_gap* is called before one begins where none ran.
    """

    def __init__(
        self, begin: Callable[[], Coroutine[Any, Any, None]], on_gap: Callable[[], None], events: Events
    ) -> None:
        self._begin = begin
        self._on_gap = on_gap
        self._events = events
        # Reentrant: the garbage collector may end a use in the middle of anything here.
        self._lock = threading.RLock()
        self._uses: dict[Loop, int] = {}
        self._loop: Loop | None = None  # where the prober is, or is about to be
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def in_use(self) -> AbstractContextManager[None]:
        """See that a prober runs for the body of this context, which is on the running loop."""
        return _Use(self)

    def stop(self) -> None:
        """End the prober, for good; any thread may."""
        with self._lock:
            self._stopped = True
            self._cancel()

    def begin_use(self, loop: Loop) -> None:
        """Count one more use on *loop*, the running one."""
        with self._lock:
            self._uses[loop] = self._uses.get(loop, 0) + 1
            is_gap = not (self._stopped or self._runs())
            if not self._is_in_place():
                self._move(loop)
        try:
            if is_gap:
                self._on_gap()
        except BaseException:
            self.end_use(loop)
            raise

    def end_use(self, loop: Loop) -> None:
        """Count one less."""
        with self._lock:
            self._uses[loop] -= 1
            if not self._uses[loop]:
                del self._uses[loop]
            self._leave(loop)

    def _runs(self) -> bool:
        if self._loop is None or not self._loop.is_running():
            return False
        return self._task is None or not self._task.done()

    def _is_in_place(self) -> bool:
        return self._stopped or (self._loop in self._uses and self._runs())

    def _leave(self, loop: Loop) -> None:
        """Move the prober away from *loop*, which may be about to end, to one that needs it."""
        if not self._is_in_place():
            others = [one for one in self._uses if one is not loop and one.is_running()]
            while others and not self._move(others.pop()):
                pass

    def _move(self, loop: Loop) -> bool:
        """Return whether *loop* is there to take the prober."""
        # Not in the context of whoever happens to come first: his variables would live as long as it does.
        try:
            loop.call_soon_threadsafe(self._start, loop, context=Context())
        except RuntimeError:  # it was closed this moment
            return False
        self._cancel()  # on a loop that stopped and may run again one day
        self._loop, self._task = loop, None
        return True

    def _cancel(self) -> None:
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and has ended it
                self._loop.call_soon_threadsafe(self._task.cancel)

    def _start(self, loop: Loop) -> None:
        with self._lock:
            if self._stopped or self._loop is not loop or self._task is not None:
                return  # it was moved on
            self._task = task = loop.create_task(self._begin(), name="areal_core prober")

        async def end() -> None:
            task.cancel()
            await asyncio.wait((task,))

        token = register_loop_cleanup(end)

        def ended(task: asyncio.Task[None]) -> None:
            unregister_loop_cleanup(token)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._events.prober_died(error)
                return  # the next use replaces it: it may die again at once
            with self._lock:
                if task is self._task:
                    self._leave(loop)

        task.add_done_callback(ended)


class _Use:
    """A use of an engine. No generator: there is one for each reply that is on its way."""

    def __init__(self, lookout: Lookout) -> None:
        self._lookout = lookout
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._lookout.begin_use(self._loop)

    def __exit__(self, *_: object) -> None:
        self._lookout.end_use(self._loop)
