"""Do something for a caller in a thread where no Ctrl-C comes, and no signal handler is in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate
from areal_core._runner.loop_thread import LoopThread
from areal_core._runner.passing import start_passing

T = TypeVar("T")


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
    if start_passing(answer.fill, name) is None:
        answer.fill()
    answer.gate.wait()
    return answer.get()


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
