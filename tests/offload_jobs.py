"""What tests have done in worker processes. Imported there: the standard library alone."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn


def give(value: Any = None, **fields: Any) -> Any:
    return fields or value


def pid() -> int:
    return os.getpid()


def modules() -> list[str]:
    return list(sys.modules)


def say(number: int) -> None:
    """Print *number*, without flushing it."""
    sys.stdout.write(f"{number}\n")
    sys.stderr.write(f"{number}\n")


def spoil_output() -> None:
    """Leave nothing that could be flushed."""
    sys.stdout.close()
    sys.stderr = None


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def after(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


def compute(seconds: float) -> None:
    """Have a processor for so many seconds."""
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass


def tell_and_stay(fifo: str) -> NoReturn:
    """Write this process's id to *fifo*, and never end."""
    Path(fifo).write_text(str(os.getpid()))
    while True:
        signal.pause()


def start_another_and_stay(fifo: str) -> NoReturn:
    """Start a process that never ends, write its id to *fifo*, and wait for it."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
        Path(fifo).write_text(str(child.pid))
    raise AssertionError


def divide(by: float) -> float:
    return inner_divide(by)


def inner_divide(by: float) -> float:
    return 1 / by


class OddError(Exception):
    """Cannot be unpickled."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def fail_oddly() -> NoReturn:
    raise OddError("a thing", "a place")


def fail_unpicklably() -> NoReturn:
    raise UnpicklableError


def leave(status: int) -> NoReturn:
    sys.exit(status)


def die(how: int) -> NoReturn:
    """Exit with status *how*, or by signal *-how*."""
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)


def die_with_a_fork_alive(fifo: str) -> NoReturn:
    if os.fork() == 0:
        tell_and_stay(fifo)
    Path(fifo + "-2").read_text()
    os._exit(7)


def give_lock() -> Any:
    return threading.Lock()


async def coroutine() -> int:
    return 1


def give_coroutine() -> Coroutine[Any, Any, int]:
    return coroutine()


class Scorer:
    """A function with a state."""

    def __init__(self, bonus: int) -> None:
        self.bonus = bonus

    def __call__(self, score: int) -> int:
        return score + self.bonus

    def method(self, score: int) -> int:
        return score - self.bonus


class AsyncScorer:
    async def __call__(self) -> int:
        return 1


_counter = itertools.count()


def count() -> int:
    return next(_counter)


def decorated(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda: [fn()]


@decorated
def hidden() -> int:
    return 1
