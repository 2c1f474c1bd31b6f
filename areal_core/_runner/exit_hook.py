"""End every life before the interpreter does.

A daemon thread that runs Python while the interpreter is torn down may crash it, and a plain thread
would keep the program from ending. So each life is ended from the hook that the interpreter calls before
it joins its threads: after ours, because registered before it, comes that of `concurrent.futures`.
"""

from __future__ import annotations

import _thread
import concurrent.futures.thread  # noqa: F401  its own hook has to be registered before ours
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

from areal_core import _process

_TASKS_GET_S = 1.0


class Endable(Protocol):
    """What the hook can end."""

    def leave(self, deadline: float) -> None:
        """Begin to end, silently, and be done at *deadline* (monotonic seconds)."""

    def join(self, deadline: float) -> None:
        """Wait for the end, until *deadline* at most."""


_aside: set[_thread.LockType] = set()  # of threads that are at work, each held until its work is done
_never = threading.Lock()
_never.acquire()
_live: set[Endable] = set()
_registered = False
_over = False


def add(life: Endable) -> None:
    """Have *life* ended at interpreter exit. Raises RuntimeError when that has begun."""
    refuse_if_over()
    _live.add(life)


def refuse_if_over() -> None:
    """Raise RuntimeError when the interpreter is exiting."""
    global _registered
    if _over:
        raise RuntimeError("the interpreter is exiting; nothing new can start")
    if not _registered:
        threading._register_atexit(_end_all)  # type: ignore[attr-defined]
        _registered = True


def discard(life: Endable) -> None:
    """Forget *life*, which has ended."""
    _live.discard(life)


def is_over() -> bool:
    """Return whether the interpreter is exiting."""
    return _over


def stay_if_over() -> None:
    """Keep a daemon thread from going on beside the interpreter's end, which has woken it; after a wait.

    It would only tell of an error that concerns nobody any more, and by writing that alone it can abort
    the interpreter. Other threads go on: the exit waits for them.
    """
    if _over and threading.current_thread().daemon:
        _never.acquire()


def run_aside(work: Callable[[], None]) -> None:
    """Do *work* in a short-lived thread, where no Ctrl-C comes; here, when there is no thread to be had.

    The interpreter's end waits for it: Python 3.11.2 crashes when a thread has not taken its first step by
    then.
    """
    held = _thread.allocate_lock()
    held.acquire()

    def run() -> None:
        try:
            work()
        finally:
            _aside.discard(held)
            held.release()

    _aside.add(held)  # a Ctrl-C before the thread starts costs the exit a second, and nothing else
    if not _over:
        with contextlib.suppress(RuntimeError):  # there is none to be had
            _thread.start_new_thread(run, ())
            return
    run()


def join_aside(deadline: float) -> None:
    """Wait until what is done aside now is done, until *deadline* at most."""
    for held in list(_aside):
        if held.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held.release()  # for others who wait for it


def _end_all() -> None:
    global _over
    _over = True
    deadline = time.monotonic() + _TASKS_GET_S
    lives = list(_live)
    for life in lives:
        life.leave(deadline)
    for life in lives:
        life.join(deadline)
    join_aside(deadline)


def _forget_all_in_child() -> None:
    # The tasks of a thread that is not here would complain, on being collected, that they are pending.
    if _live:
        _process.pin(list(_live))
    _live.clear()
    _aside.clear()


_process.call_in_child(_forget_all_in_child)
