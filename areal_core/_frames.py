"""What other threads are doing, and where an error was raised.

Python 3.11 collects garbage wherever an object is made, frames included, and they are made when they are
asked for: of a thread, of a frame's caller, of a coroutine. What is collected may give the interpreter away,
and then the other thread runs on in the midst of that: what is made a frame of has ended by then, its memory
is another call's, and the process dies. The threads' frames are made under a lock that the collection of a
`threading.local` takes as well: the process stands still. So collections are held off for each such look.
Later versions collect between two instructions only.

What is not kept out is a thread of the program's that calls `gc.set_threshold` within these microseconds.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

from areal_core import _process

_P = ParamSpec("_P")
_T = TypeVar("_T")

_COLLECTS_ANYWHERE = sys.version_info < (3, 12)

_looking = threading.RLock()  # a signal handler may look in the midst of a look
_threshold = 0
"""Of the youngest generation, while a look has it at 0: none is collected."""


def uncollected(look: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what *look* returns, with no collection of garbage in it.

    It is for one look at what belongs to a thread that may be running on.
    """
    global _threshold
    if not _COLLECTS_ANYWHERE:
        return look(*args, **kwargs)
    with _looking:
        # Not gc.disable: programs ask whether collections are enabled, and enable them again or do not.
        before = restored = gc.get_threshold()[0]
        try:
            if before:
                _threshold = before  # first: a child forked in between is to know it
                gc.set_threshold(0)
            try:
                # Not by way of a variable: what is returned may have this very frame in it, which would keep
                # it, and with it what other threads have in theirs, until the next collection.
                return look(*args, **kwargs)
            finally:
                if gc.get_threshold()[0]:  # the program has set it meanwhile
                    restored = 0
        finally:
            if restored:  # no call of Python code before it is set: a Ctrl-C would get in between
                gc.set_threshold(restored)
            if before:
                _threshold = 0


def frames_of_threads() -> dict[int, FrameType]:
    """Return the frame each thread is in, by the thread's id."""
    return uncollected(sys._current_frames)


def with_callers(frame: FrameType | None) -> list[FrameType]:
    """Return *frame* and its callers, innermost first, of a thread that may be running on."""
    return uncollected(_walk, frame)


def local_of(frame: FrameType, name: str) -> Any:
    """Return what the variable *name* of *frame* is; None: it has none. Its thread may be running on.

    All variables are copied into a dict that stays with the frame, and what that has of an earlier look goes.
    Where it is the last to hold it, what runs then may give the interpreter away, as a collection may: ask
    only of functions whose variables do not change any more once they wait.
    """
    return uncollected(_local_of, frame, name)


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return where *error* was raised. Its class may have a ``__traceback__`` of its own, that raises."""
    traceback: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    return traceback


def _walk(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _local_of(frame: FrameType, name: str) -> Any:
    return frame.f_locals.get(name)


def _arrive_in_child() -> None:
    """Do for the thread that was looking, and is not here, what it cannot do any more."""
    global _looking, _threshold
    _looking = threading.RLock()
    if _threshold and not gc.get_threshold()[0]:
        gc.set_threshold(_threshold)
    _threshold = 0


_process.call_in_child(_arrive_in_child)
