"""What other threads are doing, and where an error was raised."""

from __future__ import annotations

import gc
import sys
from types import FrameType, TracebackType


def frames_of_threads() -> dict[int, FrameType]:
    """Return the frame each thread is in, by the thread's id.

    Python 3.11 holds a lock while it makes the frames. Making them may start a garbage collection, and one
    that meets a `threading.local` takes the same lock: the process stands still for ever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return where *error* was raised. Its class may have a ``__traceback__`` of its own, that raises."""
    traceback: TracebackType | None = vars(BaseException)["__traceback__"].__get__(error)
    return traceback
