"""Run callbacks when an event loop is closed: an at-exit for loops.

    register_loop_cleanup(session.close)                   # in a coroutine: with the loop that runs it
    token = register_loop_cleanup(file.close, loop=loop)

The first registration puts a `_Cleanup` on the loop object and replaces ``close`` of that one instance.
It takes a loop through these states:

         close(), run_loop_cleanup()              no callback left, in close()
    OPEN ------------------------------> CLEANING ------------------------------> CLOSED, then the
    ^  ^                                 |                                        | loop's own close()
    |  '---- run_loop_cleanup() done ----'                                        |
    '----------------- it raised -------------------------------------------------'

    registering   OPEN: will run    CLEANING: will run too, a bounded number    CLOSED: raises
    close()       OPEN: as drawn; raises while the loop runs                    else: does nothing

The callbacks run in the thread that closes the loop and with the loop running, so they can close what
lives on it. They should begin nothing: when ``asyncio.run`` closes a loop its other tasks are cancelled
and its default executor is gone, so ``asyncio.to_thread`` fails and, on asyncio, name resolution too.

A loop that is garbage-collected unclosed runs no callbacks: the collector works in any thread, in the
middle of anything. asyncio itself warns of such a loop. A forked child runs none of its parent's
callbacks, and its ``close()`` leaves an inherited loop as it is: it shares the parent's epoll.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sys
import threading
import time
import weakref
from collections.abc import Callable

from areal_core._callback import Callback
from areal_core._drive import ctrl_c_held, drive
from areal_core._frames import frames_of_threads, local_of, with_callers
from areal_core._log import get_logger
from areal_core._process import home, shield

__all__ = ["register_loop_cleanup", "unregister_loop_cleanup"]

_ATTRIBUTE = "_areal_core_cleanup"
_BUDGET_S = 10.0  # for the async callbacks of one close, together
_KEPT_S = 0.1  # of it, for each callback still to come: plenty for one that does not hang
_MOST_LATE = 100  # registrations during one cleanup: generous to who opens something in order to close

_log = get_logger()


def register_loop_cleanup(
    callback: Callable[[], object],
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    timeout: float = 5.0,
) -> object:
    """Have *callback* called when *loop* (None: the running one) is closed, and return a token.

    It is called without arguments, at most once, the newest registration first, and may be sync or
    return an awaitable. An awaitable is cancelled after *timeout* seconds; those of one close have 10 s
    in all. A sync callback cannot be interrupted: one that takes longer than *timeout* is named in a log
    line while it blocks. What a callback raises is logged, and keeps neither the others from running nor
    the loop from closing; KeyboardInterrupt and SystemExit are raised again once it is closed. So is the
    first Ctrl-C; a second one is raised at once. The default executor and name resolution may be gone.

    Raises RuntimeError where no loop runs, and for a loop that is closed, past its cleanup, or inherited
    from a parent process; TypeError and ValueError for a callback or timeout that cannot be one.
    """
    if not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}, which cannot be called; pass a function")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout={timeout!r} is not a number; pass seconds")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r} is not positive; pass seconds")
    loop = _running_if_none(loop)
    cleanup = _cleanup_of(loop) or vars(loop).setdefault(_ATTRIBUTE, _Cleanup(loop))
    return cleanup.add(Callback(callback, timeout))


def unregister_loop_cleanup(
    token_or_callback: object, *, loop: asyncio.AbstractEventLoop | None = None
) -> bool:
    """Take a callback off *loop* and return whether it was still there.

    A callback is known by identity, a bound method by its object and its function; of one registered
    twice the newest goes first. ``loop=None`` means the running loop, and for a token the loop it came
    from. Raises RuntimeError for a callback where no loop runs.
    """
    if loop is None and isinstance(token_or_callback, _Token):
        cleanup = token_or_callback.cleanup()
    else:
        cleanup = _cleanup_of(_running_if_none(loop))
    return cleanup is not None and cleanup.remove(token_or_callback)


def run_loop_cleanup(loop: asyncio.AbstractEventLoop, budget_s: float = _BUDGET_S) -> BaseException | None:
    """Run now what is registered on the stopped, open *loop*; what comes later runs at its close.

    *budget_s* bounds the seconds of the async callbacks together. Returns the first KeyboardInterrupt or
    SystemExit, for the caller to raise once the loop is closed, or None.
    """
    cleanup = _cleanup_of(loop)
    return None if cleanup is None else cleanup.run(budget_s)


def _running_if_none(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    loop = loop or asyncio._get_running_loop()
    if loop is None:
        raise RuntimeError("no event loop runs in this thread; call this in a coroutine or pass loop=")
    return loop


def _cleanup_of(loop: asyncio.AbstractEventLoop) -> _Cleanup | None:
    return vars(loop).get(_ATTRIBUTE)


class _State(enum.Enum):
    """The picture at the top has the transitions."""

    OPEN = enum.auto()
    CLEANING = enum.auto()
    CLOSED = enum.auto()


class _Token:
    """Stands for one registration; keeps neither its callback nor its loop alive."""

    def __init__(self, cleanup: _Cleanup) -> None:
        self.cleanup = weakref.ref(cleanup)


class _Cleanup:
    """The callbacks of one loop. Lives on that loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._home = home()
        # The loop refers back to this object: a cycle, left to the collector, and broken by closing.
        self._loop = loop
        self._really_close = loop.close
        self._attached = False
        # Guards what follows. Reentrant: the collector may run a finalizer that unregisters inside.
        self._lock = threading.RLock()
        self._state = _State.OPEN
        self._callbacks: dict[object, Callback] = {}  # by token, the newest last
        self._late = 0

    def add(self, callback: Callback) -> _Token:
        """Register *callback*, or raise: what the lock lets in will run."""
        if self._home is not home():
            raise RuntimeError("the loop belongs to the parent process; use one made in this process")
        token = _Token(self)
        with self._lock:
            if self._state is _State.CLOSED or self._loop.is_closed():
                raise RuntimeError("the loop is closed, or past its cleanup; register before")
            if self._state is _State.CLEANING:
                self._count_late()
            if not self._attached:
                self._attach()
            self._callbacks[token] = callback
        return token

    def _count_late(self) -> None:
        if self._late == _MOST_LATE:
            raise RuntimeError(f"{_MOST_LATE} callbacks were registered during cleanup; it takes no more")
        self._late += 1

    def _attach(self) -> None:
        self._loop.close = self.close  # type: ignore[method-assign]
        # Only now: a close that begins from here on is ours.
        if _is_being_closed(self._loop):
            raise RuntimeError("the loop is being closed; register before")
        shield(self._loop)
        self._attached = True

    def remove(self, token_or_callback: object) -> bool:
        """Take one callback away and return whether there was one."""
        if self._home is not home():
            return False  # and the lock may be held for ever, by a thread that did not survive the fork
        with self._lock:
            removed = self._callbacks.pop(self._token_of(token_or_callback), None)
        return removed is not None  # it dies after the lock is free, and may run any finalizer

    def _token_of(self, token_or_callback: object) -> object:
        if isinstance(token_or_callback, _Token):
            return token_or_callback
        newest_first = reversed(self._callbacks.copy().items())
        return next((token for token, callback in newest_first if callback.calls(token_or_callback)), None)

    def run(self, budget_s: float) -> BaseException | None:
        """Run the callbacks and be open again; return the first interrupt."""
        interrupts: list[BaseException] = []
        with ctrl_c_held(interrupts.append):
            if self._home is home() and self._begin():
                self._run_all(budget_s, _State.OPEN, interrupts)
        return interrupts[0] if interrupts else None

    def close(self) -> None:
        """Run the callbacks, then close the loop: what ``loop.close()`` is from now on."""
        if self._home is not home():
            return
        if sys._getframe(1).f_code is asyncio.BaseEventLoop.__del__.__code__:
            self._really_close()
            return
        interrupts: list[BaseException] = []
        with ctrl_c_held(interrupts.append):
            if self._begin():
                try:
                    self._run_all(_BUDGET_S, _State.CLOSED, interrupts)
                finally:
                    self._end()
        if interrupts:
            raise interrupts[0]

    def _begin(self) -> bool:
        """Start cleaning; return False when that was done, or is under way: then it is not for us."""
        with self._lock:
            if self._state is not _State.OPEN:
                return False
            if self._loop.is_running():
                raise RuntimeError("Cannot close a running event loop")
            self._state = _State.CLEANING
            self._late = 0
            return True

    def _end(self) -> None:
        try:
            self._really_close()
        except BaseException:
            self._state = _State.OPEN
            raise
        del self._loop, self._really_close

    def _run_all(self, budget_s: float, then: _State, interrupts: list[BaseException]) -> None:
        deadline = time.monotonic() + budget_s
        while (callback := self._next(then)) is not None:
            still_to_come = len(self._callbacks)
            share_s = max(0.0, deadline - time.monotonic()) / (1 + still_to_come)
            kept_s = still_to_come * min(_KEPT_S, share_s)
            try:
                drive(self._loop, callback.call(deadline - kept_s), on_contained=interrupts.append)
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt | SystemExit):
                    interrupts.append(exc)
                with contextlib.suppress(Exception):  # a handler's filter may raise, here above all
                    _log.error("loop_cleanup_failed", callback=callback.name, exc_info=exc)

    def _next(self, then: _State) -> Callback | None:
        """Take the newest callback; when there is none go on to state *then*."""
        with self._lock:
            try:
                return self._callbacks.popitem()[1]
            except KeyError:
                self._state = then
                return None


def _is_being_closed(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a thread is inside the ``close`` that ours replaced, which knows no lock of ours.

    asyncio's gives up the interpreter between "is it closed?" and "now it is", for long enough to lose
    most registrations that race with it. uvloop's, compiled, does not.
    """
    codes = {getattr(vars(kind).get("close"), "__code__", None) for kind in type(loop).__mro__}
    return any(
        frame.f_code in codes and local_of(frame, "self") is loop
        for innermost in frames_of_threads().values()
        for frame in with_callers(innermost)
    )
