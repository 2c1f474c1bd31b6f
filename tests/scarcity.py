"""Acts that are played while one thing after another runs out, each time in a process forked for it.

``play(act, shortage)`` plays an act with nothing to spare, then with one descriptor, thread or byte to spare,
and so on until nothing is missed any more. Meant for scripts: it prints a line for each promise that broke,
and how many plays it took.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import itertools
import logging
import os
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

MOST_PLAYS = 100
PLAY_S = 25.0

_EXPECTED = (OSError, RuntimeError, MemoryError)
"""What a shortage may be told as; all errors of the library that tell of one are RuntimeErrors."""


class Act(Protocol):
    """One thing that a program does."""

    def __call__(self) -> list[BaseException]:
        """Do it; return what went wrong, in calls or in outcomes. Raises AssertionError for what is lost."""


Shortage = Callable[[int], AbstractContextManager[list[int] | None]]
"""Makes a context in which there are so many to spare. It gives what was refused; None: that is not known."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Make a loop of the kind that the test is about."""
    module: Any = importlib.import_module(os.environ["AREAL_TEST_LOOP"])
    loop: asyncio.AbstractEventLoop = module.new_event_loop()
    return loop


# -- what may run out


@contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """Let no more than *spare* descriptors be opened at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def one_thread(spare: int) -> Iterator[list[int]]:
    """Start *spare* threads, refuse the next one as Python does, and start all behind it."""
    with _refusing_threads(lambda number: number == spare) as refused:
        yield refused


@contextmanager
def threads(spare: int) -> Iterator[list[int]]:
    """Start *spare* threads, and no more."""
    with _refusing_threads(lambda number: number >= spare) as refused:
        yield refused


@contextmanager
def _refusing_threads(is_refused: Callable[[int], bool]) -> Iterator[list[int]]:
    refused: list[int] = []
    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    really = getattr(threading, name)
    asked = itertools.count()

    def start(*arguments: Any, **options: Any) -> Any:
        if is_refused(number := next(asked)):
            refused.append(number)
            raise RuntimeError("can't start new thread")
        return really(*arguments, **options)

    setattr(threading, name, start)
    try:
        yield refused
    finally:
        setattr(threading, name, really)


@contextmanager
def room(spare: int) -> Iterator[None]:
    """Let no file grow over *spare* times 5 000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spare * 5_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- plays


def play(act: Act, shortage: Shortage, first: int = 0, step: int = 1) -> None:
    """Play *act* with *first* to spare, and *step* more each time, until it goes through untouched."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    untouched = 0
    for number in range(MOST_PLAYS):
        spare = first + number * step
        child = os.fork()
        if not child:
            os._exit(_in_child(act, shortage, spare))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        untouched = untouched + 1 if status == 0 else 0
        if untouched == _IN_A_ROW:
            _say(f"untouched from {spare - (_IN_A_ROW - 1) * step} on")
            return
        if status not in (0, _TOUCHED):
            _say(f"with {spare} to spare the process ended with {status}")
    _say(f"never untouched in {MOST_PLAYS}")


_TOUCHED, _BROKEN = 3, 4
_IN_A_ROW = 4
"""An act may do without something: that one play went well is not the end."""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _in_child(act: Act, shortage: Shortage, spare: int) -> int:
    faulthandler.dump_traceback_later(PLAY_S, exit=True)
    try:
        return _TOUCHED if _played(act, shortage, spare) else 0
    except BaseException:
        _say("\n    ".join([f"with {spare} to spare:", *traceback.format_exc().splitlines()[-12:]]))
        return _BROKEN
    finally:
        sys.stderr.flush()


def _played(act: Act, shortage: Shortage, spare: int) -> bool:
    """Play *act* in want, see to its promises, and return whether it felt that."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        unraisable: list[str] = []
        sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.object!r}")
        threading.excepthook = lambda args: unraisable.append(f"{args.exc_value!r} in {args.thread!r}")
        logging.getLogger("areal_core").addHandler(logging.NullHandler())
        logging.getLogger("asyncio").addHandler(_Collecting(unraisable))
        new_loop().close()  # libuv keeps a pipe for all that come after
        before = _held()
        with shortage(spare) as refused:
            wrong = act()
        for error in wrong:
            assert isinstance(error, _EXPECTED), f"{error!r}"
        felt = bool(wrong or refused)
        del wrong
        again = act()
        assert not again, f"it does not work afterwards: {again}"
        _see_that_nothing_is_left(before)
    assert not unraisable, unraisable
    assert not warned, [str(one.message) for one in warned]
    return felt


class _Collecting(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith("Executing <"):  # that tells of the machine
            self._lines.append(record.getMessage())


def _held() -> tuple[set[str], set[str]]:
    """Return what is open, and which threads there are."""
    opened = {_target(one) for one in Path("/proc/self/fd").iterdir()}
    return opened, {one.name for one in threading.enumerate()}


def _target(descriptor: Path) -> str:
    try:
        return f"{descriptor.name} {descriptor.readlink()}"
    except OSError:  # the one that lists them
        return "listing"


def _see_that_nothing_is_left(before: tuple[set[str], set[str]]) -> None:
    gc.collect()
    for thread in threading.enumerate():
        if thread.name not in before[1]:
            thread.join(2.0)  # it is on its last lines
    held = _held()
    assert held == before, f"left behind: {held[0] - before[0]} {held[1] - before[1]}"
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert children.read_text() == "", "a process is left behind"
