"""One thread, the event loop it owns, and what may be posted to it. Knows nothing of tasks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import traceback
from collections.abc import Callable
from typing import Any

from areal_core import _process
from areal_core._descriptors import require_descriptors_for_loop
from areal_core._frames import frames_of_threads, with_callers
from areal_core._runner.events import Events
from areal_core._runner.gate import Gate, thread_of_gates

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class LoopThread:
    """A daemon thread that runs one loop from ``start`` until ``request_stop`` or a fault of ours.

    What *tasks* do cannot end it: SystemExit, KeyboardInterrupt and ``loop.stop()`` are contained, and
    the loop goes on. A callback of the library itself that raises is a fault: *on_fault* is told, in the
    thread. Either way *on_end* then runs in the thread with the loop stopped, and has to close it.
    """

    def __init__(
        self,
        loop_factory: LoopFactory | None,
        events: Events,
        on_fault: Callable[[BaseException], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop_factory = loop_factory
        self._events = events
        self._on_fault = on_fault
        self._on_end = on_end
        self._stopping = False
        self._started = Gate()
        self._start_error: BaseException | None = None
        # Made once: a bound method takes 64 bytes, and every timer would hold one of its own.
        self._guarded = self._guard
        # What we schedule runs in a context of its own, not in that of whichever task caused it.
        self._context = contextvars.Context()
        self.finished = Gate()
        """Opened on the thread's last line: `Thread.join` misses it after a Ctrl-C on 3.11."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread = thread_of_gates(self._main, "areal-core-runner", daemon=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, from the moment ``start`` has returned."""
        assert self._loop is not None
        return self._loop

    def start(self) -> None:
        """Start the thread and return when the loop runs. Raises here what failed there."""
        self.thread.start()
        self._started.wait()
        if self._start_error is not None:
            raise self._start_error

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """Run *callback* on the loop; from any thread. Raises RuntimeError when the loop is closed."""
        self.loop.call_soon_threadsafe(self._guarded, callback, *args, context=self._context)

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Run *callback* in the next turn; on the loop thread only."""
        self.loop.call_soon(self._guarded, callback, *args, context=self._context)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Run *callback* after *delay_s* seconds; on the loop thread only."""
        return self.loop.call_later(delay_s, self._guarded, callback, *args, context=self._context)

    def request_stop(self) -> None:
        """Have the loop stop and the thread end; from any thread, any number of times."""
        self._stopping = True  # first: a thread that has no loop yet looks at this once it has
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: the thread is past needing it
                self._loop.call_soon_threadsafe(self._loop.stop)

    def is_current(self) -> bool:
        """Tell whether the caller is on this thread."""
        # Once it has ended, the next thread may get its number.
        return threading.get_ident() == self.thread.ident and not self.finished.is_open

    def stack(self) -> str:
        """Say where the thread is at this moment."""
        frames = with_callers(frames_of_threads().get(self.thread.ident or 0))
        calls = [(frame, frame.f_lineno) for frame in reversed(frames)]
        return "".join(traceback.StackSummary.extract(iter(calls)).format()) or "(the thread has ended)"

    def _main(self) -> None:
        try:
            self._run()
        finally:
            self._started.open()
            self.finished.open()

    def _run(self) -> None:
        try:
            require_descriptors_for_loop()
            loop = self._new_loop()
            if not isinstance(loop, asyncio.AbstractEventLoop):
                raise TypeError(f"loop_factory gave {loop!r}, which is no event loop; return a new loop")
            if loop.is_running() or loop.is_closed():  # it is somebody else's, or was
                state = "closed" if loop.is_closed() else "running"
                raise RuntimeError(
                    f"loop_factory gave {loop!r}, which is {state}; make a new loop at each call"
                )
            self._loop = loop
            _process.shield(self._loop)
            self._loop.call_soon(self._started.open, context=self._context)
            self._run_until_stopped(self._loop)
        except BaseException as error:
            if self._started.is_open:
                self._on_fault(error)
            else:
                self._start_error = error
        if self._loop is not None:
            self._on_end()

    def _run_until_stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopping:
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as raised:
                self._events.contained(repr(raised))
            else:
                if not self._stopping:
                    self._events.contained("loop.stop()")

    def _guard(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            callback(*args)
        except BaseException as fault:
            self._on_fault(fault)
            self._stopping = True
            self.loop.stop()

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop_factory is not None:
            return self._loop_factory()
        try:
            import uvloop

            return uvloop.new_event_loop()
        except Exception as error:
            self._events.fell_back_to_asyncio(error)
            return asyncio.new_event_loop()
