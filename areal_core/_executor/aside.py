"""Do something for a caller in a thread where no Ctrl-C comes, and no signal handler is in the middle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate
from areal_core._runner.loop_thread import LoopThread

T = TypeVar("T")


def aside(thread: LoopThread, make: Callable[[], T]) -> T:
    """Return what *make* does, in a short-lived thread; or here, in *thread*, which is never interrupted."""
    if thread.is_current():
        return make()
    answer: list[T] = []
    errors: list[BaseException] = []
    made = Gate()
    exit_hook.run_aside(partial(_make, make, answer, errors, made))
    made.wait()
    exit_hook.stay_if_over()
    if errors:
        raise errors[0]
    return answer[0]


def _make(make: Callable[[], T], answer: list[T], errors: list[BaseException], made: Gate) -> None:
    try:
        answer.append(make())
    except BaseException as error:
        errors.append(error)
    made.open()
