"""Do something for a caller in a thread where no Ctrl-C comes, and no signal handler is in the middle."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate, thread_of_gates
from areal_core._runner.loop_thread import LoopThread

T = TypeVar("T")

_started: deque[threading.Thread] = deque()
"""Those that ran last. Freed in the caller's thread, their weak references would call back there: a Ctrl-C
in the middle of that would be lost."""


def aside(thread: LoopThread, make: Callable[[], T]) -> T:
    """Return what *make* does, in a short-lived thread; or here, in *thread*, which is never interrupted."""
    if thread.is_current():
        return make()
    answer = _Answer(make)
    exit_hook.run_aside(answer.fill)
    answer.gate.wait()
    exit_hook.stay_if_over()
    return answer.get()


def to_the_end(name: str, make: Callable[[], T]) -> T:
    """Return what *make* does, in a thread that the end of the interpreter waits for.

    After a Ctrl-C in here it goes on.
    """
    answer = _Answer(make)

    def run() -> None:
        _forget_ended()
        answer.fill()

    thread = thread_of_gates(run, name, daemon=False)
    _started.append(thread)
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:  # a signal handler's, and the thread runs
            raise
        run()  # there is none to be had
    answer.gate.wait()
    return answer.get()


def _forget_ended() -> None:
    with contextlib.suppress(IndexError):  # another one was faster
        while not _started[0].is_alive():
            _started.popleft()


class _Answer(Generic[T]):
    """What *make* returned or raised, for a thread that waits for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: list[T] = []
        self._error: BaseException | None = None
        self.gate = Gate()

    def fill(self) -> None:
        try:
            self._values.append(self._make())
        except BaseException as error:
            self._error = error
        finally:
            self.gate.open()

    def get(self) -> T:
        if self._error is not None:
            raise self._error
        return self._values[0]
