"""Threads that end before the program does, started where a Ctrl-C may come: `start_passing`, `to_the_end`.

What is freed in a caller's thread calls its weak references back there, and a Ctrl-C in the middle of that
would be lost. `threading` has such references to each thread. So the last ones are kept, and freed in the
next one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from areal_core._runner.answer import Answer
from areal_core._runner.gate import thread_of_gates

T = TypeVar("T")

_started: deque[threading.Thread] = deque()


def start_passing(target: Callable[[], None], name: str) -> threading.Thread | None:
    """Start a thread that the end of the interpreter waits for; None: there is none to be had."""

    def run() -> None:
        _forget_ended()
        target()

    thread = thread_of_gates(run, name, daemon=False)
    _started.append(thread)
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:  # a signal handler's, and the thread runs
            raise
        _started.remove(thread)
        return None
    return thread


def _forget_ended() -> None:
    for thread in tuple(_started):
        if thread.ident is not None and not thread.is_alive():
            with contextlib.suppress(ValueError, IndexError):  # another one was faster
                _started.remove(thread)


def to_the_end(name: str, make: Callable[[], T]) -> T:
    """Return what *make* does, in a thread that the end of the interpreter waits for.

    After a Ctrl-C in here it goes on.
    """
    answer = Answer(make)
    if start_passing(answer.fill, name) is None:
        answer.fill()
    answer.gate.wait()
    return answer.get()
