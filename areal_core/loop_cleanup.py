"""Run callbacks when an event loop is closed: an at-exit for loops.

    register_loop_cleanup(session.close)       # inside a coroutine: on the loop that runs it
    register_loop_cleanup(file.close, loop=loop)

The first registration puts a `_Cleanup` on the loop object and replaces ``close`` on that one instance:

                  close(), loop stopped               no callback left        the loop's own close()
    OPEN ------------------------------> CLEANING ------------------> SEALED ----------------------> CLOSED
     ^    runs the callbacks,              |  ^ registers: runs too    | registering raises          close()
     |    newest first                     |  '- (a bounded number)    |                       does nothing
     '---- run_loop_cleanup() is done -----'                           |
     '---- the loop's own close() failed ------------------------------'

Callbacks run in the thread that closes the loop, with the loop running, so they may close whatever
lives on it. They should not start new work: under ``asyncio.run`` the loop's tasks are cancelled and its
default executor is gone by then, so ``asyncio.to_thread`` fails, and on asyncio name resolution too.

A loop that is garbage-collected unclosed runs no callbacks: the collector works in whichever thread it
likes, in the middle of anything. (asyncio warns of such a loop itself.) A forked child runs none either,
and leaves an inherited loop open: closing it would break the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator

from areal_core._drive import drive
from areal_core._log import get_logger
from areal_core._process import home, shield

__all__ = ["register_loop_cleanup", "unregister_loop_cleanup"]

_ATTRIBUTE = "_areal_core_cleanup"
_BUDGET_S = 10.0  # for all async callbacks of one close
_CANCEL_GRACE_S = 0.5  # for one callback to end after its cancellation, within the budget
_MOST_LATE = 100  # registrations during one cleanup: plenty for callbacks that open something to close it

_log = get_logger()


def register_loop_cleanup(
    callback: Callable[[], object],
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    timeout: float = 5.0,
) -> object:
    """Have *loop* (None: the running one) call *callback* when it is closed, and return a token.

    *callback* takes no arguments, and is sync or returns an awaitable. The newest runs first, each at
    most once. An awaitable is cancelled after *timeout* seconds, and all of a loop's together after 10 s; a
    sync callback cannot be interrupted: one that takes longer than *timeout* is named in a log line
    while it blocks. Whatever a callback raises is logged and keeps neither the others from running nor
    the loop from closing; KeyboardInterrupt and SystemExit are raised again after that.

    Keep the token to unregister. Raises RuntimeError where no loop runs, and for a loop that is closed,
    past its cleanup, or inherited from a parent process; TypeError and ValueError for bad arguments.
    """
    if not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}, not callable; pass a function")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout={timeout!r} is not a number; pass seconds")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout!r} is not positive; pass seconds")
    loop = _running_if_none(loop)
    cleanup: _Cleanup = vars(loop).setdefault(_ATTRIBUTE, _Cleanup(loop))
    return cleanup.add(_Entry(callback, timeout))


def unregister_loop_cleanup(
    token_or_callback: object, *, loop: asyncio.AbstractEventLoop | None = None
) -> bool:
    """Take a callback off *loop* and return whether it was still there.

    A callback is known by identity, a bound method by its object and its function; if it was registered
    twice the newest goes first. ``loop=None`` means the running loop, and for a token the loop it came
    from. Raises RuntimeError for a callback where no loop runs.
    """
    if loop is None and isinstance(token_or_callback, _Token):
        cleanup = token_or_callback.cleanup()
    else:
        cleanup = _cleanup_of(_running_if_none(loop))
    return cleanup is not None and cleanup.remove(token_or_callback)


def run_loop_cleanup(loop: asyncio.AbstractEventLoop, budget_s: float = _BUDGET_S) -> BaseException | None:
    """Run now what is registered on the stopped, open *loop*; what is registered later runs at its close.

    *budget_s* bounds the seconds of all async callbacks together. Returns the first KeyboardInterrupt or
    SystemExit, for the caller to raise once the loop is closed, or None.
    """
    cleanup = _cleanup_of(loop)
    return None if cleanup is None else cleanup.run(budget_s)


def _running_if_none(loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    if loop is None:
        loop = asyncio._get_running_loop()
    if loop is None:
        raise RuntimeError("no event loop runs in this thread; call this in a coroutine or pass loop=")
    return loop


def _cleanup_of(loop: asyncio.AbstractEventLoop) -> _Cleanup | None:
    return vars(loop).get(_ATTRIBUTE)


class _State(enum.Enum):
    """Where in its life a loop is, as far as cleanup goes; the picture above has the transitions."""

    OPEN = enum.auto()
    CLEANING = enum.auto()
    SEALED = enum.auto()
    CLOSED = enum.auto()


class _Token:
    """Stands for one registration; keeps neither its callback nor its loop alive."""

    def __init__(self, cleanup: _Cleanup) -> None:
        self.cleanup = weakref.ref(cleanup)


class _Entry:
    """A callback, its time limit, and what log lines call it."""

    def __init__(self, callback: Callable[[], object], timeout_s: float) -> None:
        self.callback = callback
        self.timeout_s = timeout_s
        self.name = _name(callback)


class _Cleanup:
    """The callbacks of one loop. Lives on that loop, and forgets it once it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._home = home()
        # A cycle (the loop holds this object), for the collector to find or `close` to break.
        self._loop = loop
        self._really_close = loop.close
        self._installed = False
        # Guards all below. Reentrant: a finalizer run by the collector inside it may unregister.
        self._lock = threading.RLock()
        self._state = _State.OPEN
        self._entries: dict[object, _Entry] = {}
        self._late = 0

    def add(self, entry: _Entry) -> _Token:
        """Register *entry*. Under the lock that seals: what is accepted will run."""
        if self._home is not home():
            raise RuntimeError("the loop belongs to the parent process; use one made in this process")
        token = _Token(self)
        with self._lock:
            self._admit()
            if not self._installed:
                self._installed = True
                self._loop.close = self.close  # type: ignore[method-assign]
                shield(self._loop)
            self._entries[token] = entry
        return token

    def _admit(self) -> None:
        if self._state in (_State.SEALED, _State.CLOSED) or self._loop.is_closed():
            raise RuntimeError("the loop is closed, or past its cleanup; register earlier")
        if self._state is _State.CLEANING:
            if self._late == _MOST_LATE:
                raise RuntimeError(f"{_MOST_LATE} callbacks were registered during cleanup; it takes no more")
            self._late += 1

    def remove(self, token_or_callback: object) -> bool:
        """Take one entry away and return whether there was one."""
        if self._home is not home():
            return False  # the lock may be held for ever by a thread that the fork left behind
        with self._lock:
            removed = self._entries.pop(self._find(token_or_callback), None)
        return removed is not None  # its callback dies outside the lock, finalizers and all

    def _find(self, token_or_callback: object) -> object:
        """Return the newest token under which a callback is registered; a token stands for itself."""
        if isinstance(token_or_callback, _Token):
            return token_or_callback
        wanted = _identity(token_or_callback)
        newest_first = reversed(self._entries.copy().items())
        return next((token for token, entry in newest_first if _identity(entry.callback) == wanted), None)

    def run(self, budget_s: float) -> BaseException | None:
        """Run the callbacks and be open again."""
        if self._home is not home() or not self._begin():
            return None
        return self._run_all(budget_s, _State.OPEN)

    def close(self) -> None:
        """Run the callbacks, then close the loop: this is what ``loop.close()`` has become."""
        if self._home is not home():
            return
        if sys._getframe(1).f_code is asyncio.BaseEventLoop.__del__.__code__:
            self._really_close()
            return
        if not self._begin():
            return
        try:
            interrupt = self._run_all(_BUDGET_S, _State.SEALED)
        finally:
            self._end()
        if interrupt is not None:
            raise interrupt

    def _begin(self) -> bool:
        """Start cleaning; return False when that is under way, by whoever, or done."""
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
        self._state = _State.CLOSED
        del self._loop, self._really_close

    def _run_all(self, budget_s: float, then: _State) -> BaseException | None:
        """Run callbacks until none is left, go to state *then*, return the first interrupt."""
        deadline = time.monotonic() + budget_s
        raised: list[BaseException] = []
        while (entry := self._take(then)) is not None:
            try:
                self._run_one(entry, deadline, raised)
            except BaseException as exc:  # a log handler raised, or Ctrl-C came while it wrote
                raised.append(exc)
        return next((exc for exc in raised if isinstance(exc, KeyboardInterrupt | SystemExit)), None)

    def _take(self, then: _State) -> _Entry | None:
        with self._lock:
            if self._entries:
                return self._entries.popitem()[1]
            self._state = then
            return None

    def _run_one(self, entry: _Entry, deadline: float, raised: list[BaseException]) -> None:
        try:
            drive(self._loop, _call(entry, deadline), on_contained=raised.append)
        except BaseException as exc:
            raised.append(exc)
            _log.error("loop_cleanup_failed", callback=entry.name, exc_info=exc)


async def _call(entry: _Entry, deadline: float) -> None:
    """Call back, and see an awaitable through within the limits."""
    with _named_while_it_blocks(entry.name, entry.timeout_s):
        result = entry.callback()
    if inspect.isawaitable(result):
        limit_s = min(entry.timeout_s, max(0.0, deadline - time.monotonic()))
        # Much later than _finish gives up: then it is the coroutine that blocks the thread.
        with _named_while_it_blocks(entry.name, limit_s + 2 * _CANCEL_GRACE_S):
            await _finish(entry.name, asyncio.ensure_future(result), limit_s, deadline)


async def _finish(name: str, task: asyncio.Future[object], limit_s: float, deadline: float) -> None:
    """Wait for *task*; after the limit cancel it, and abandon it if it refuses."""
    before = asyncio.all_tasks() - {task}
    await asyncio.wait({task}, timeout=limit_s)
    if task.done():
        task.result()
        return
    task.cancel()
    await asyncio.wait({task}, timeout=min(_CANCEL_GRACE_S, max(0.0, deadline - time.monotonic())))
    error = task.exception() if task.done() and not task.cancelled() else None
    _log.error("loop_cleanup_timed_out", callback=name, seconds=limit_s, ended=task.done(), exc_info=error)
    if not task.done():
        for abandoned in asyncio.all_tasks() - before:
            abandoned._log_destroy_pending = False  # type: ignore[attr-defined]
            asyncio.tasks._unregister_task(abandoned)  # nobody should wait for it: it will not end


@contextlib.contextmanager
def _named_while_it_blocks(name: str, seconds: float) -> Iterator[None]:
    """Write a log line from another thread if the block takes longer than *seconds*."""
    seconds = min(seconds, threading.TIMEOUT_MAX)
    timer = threading.Timer(
        seconds, _log.warning, ["loop_cleanup_blocks"], {"callback": name, "seconds": seconds}
    )
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no more threads can be started, or the interpreter is ending
        yield
        return
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _identity(callback: object) -> tuple[object, ...]:
    """Return what tells *callback* from others. A bound method is a new object at each access."""
    if isinstance(callback, types.MethodType):
        return id(callback.__self__), id(callback.__func__)
    if isinstance(callback, types.BuiltinMethodType | types.MethodWrapperType):
        return id(callback.__self__), callback.__name__
    return (id(callback),)


def _name(callback: object) -> str:
    """Name *callback* without its arguments, which a partial would print."""
    function = getattr(callback, "func", callback)
    name = getattr(function, "__qualname__", type(callback).__qualname__)
    return f"{getattr(function, '__module__', None) or type(callback).__module__}.{name}"
