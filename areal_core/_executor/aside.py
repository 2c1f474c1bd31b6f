"""Do something for a caller in a thread where no Ctrl-C comes, and no signal handler is in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from areal_core._runner import exit_hook
from areal_core._runner.answer import Answer
from areal_core._runner.loop_thread import LoopThread

T = TypeVar("T")


def aside(thread: LoopThread, make: Callable[[], T]) -> T:
    """Return what *make* does, in a short-lived thread; or here, in *thread*, which is never interrupted."""
    if thread.is_current():
        return make()
    answer = Answer(make)
    exit_hook.run_aside(answer.fill)
    answer.gate.wait()
    exit_hook.stay_if_over()
    return answer.get()
