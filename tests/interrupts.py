"""Ctrl-C, or the garbage collector, at a chosen step of a call: there is no chance in it.

CPython notes a signal at once and runs its handler at the main thread's next check: after a call of C code,
at a function's entry, at a jump backwards. A signal from outside hits one check or another by luck.
`interrupt` counts the steps that the main thread takes below the library's frames, trips the signal before
the chosen one, and leaves the rest to the interpreter: the handler then runs exactly where it would have
run, and frames, exception tables and locks are what they would have been. `collect` does the same with the
collector, which runs where the next object is allocated, or, since 3.12, at the check after that.
"""

from __future__ import annotations

import dis
import gc
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from operator import methodcaller
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import areal_core
from areal_core._runner.gate import Gate

_LIBRARY = str(Path(areal_core.__file__).parent)

# Instructions in which nothing can be noticed. A signal before one of them is noticed where one before the
# next instruction is.
_INERT = {
    "CACHE", "CHECK_EXC_MATCH", "COMPARE_OP", "CONTAINS_OP",
    "COPY", "COPY_FREE_VARS", "EXTENDED_ARG", "GEN_START", "IS_OP", "JUMP_FORWARD", "KW_NAMES",
    "LOAD_CLOSURE", "LOAD_CONST", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_CHECK",
    "LOAD_FAST_LOAD_FAST", "LOAD_GLOBAL", "MAKE_CELL", "NOP", "POP_EXCEPT",
    "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE",
    "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE",
    "POP_JUMP_IF_TRUE", "PRECALL", "PUSH_EXC_INFO", "PUSH_NULL", "RAISE_VARARGS", "RERAISE", "RETURN_CONST",
    "RETURN_GENERATOR", "RETURN_VALUE", "SWAP", "TO_BOOL", "UNPACK_SEQUENCE", "YIELD_VALUE",
}  # fmt: skip


@dataclass
class Interruption:
    """What became of what was tripped in one call."""

    tripped: int = 0
    """How often that was: less than asked for when the call was over before."""
    noticed: int = 0
    """How often it showed inside the library."""
    where: str = "nowhere"
    """The lines at which it did, innermost first."""

    def note(self, frames: Sequence[FrameType]) -> None:
        """Note where it showed."""
        where = " < ".join(
            f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
            for frame in frames[:3]
        )
        self.where = f"{where}, after {self.where}" if self.noticed else where
        self.noticed += 1


def interrupt(call: Callable[[], object], *gaps: int) -> Interruption:
    """Make *call*, and trip SIGINT before step ``gaps[0]``, counted from 0, then again ``gaps[1]`` steps
    after that was noticed, and so on. Steps are taken in the library and in what it calls. A
    KeyboardInterrupt that comes out of *call* goes no further; any other exception does.
    """
    gaps_left = list(gaps)
    tripwire = _Tripwire(_SIGINT, gaps_left.pop(0))

    def notice(signum: int, frame: FrameType | None) -> None:
        if tripwire.shows_in(frame) and gaps_left:
            tripwire.stretch(frame, gaps_left.pop(0))
        raise KeyboardInterrupt

    with _sigint_handled_by(notice), _without_collector():
        try:
            tripwire.make(call)  # at its end, at the latest, a signal is noticed
        except KeyboardInterrupt:
            pass
    return tripwire.outcome


def intervene(call: Callable[[], object], step: int, handle: Callable[[], object]) -> Interruption:
    """Make *call*, and before step number *step* trip a signal whose handler calls *handle*, and returns.

    Not if it is noticed after *call*, outside the library.
    """
    tripwire = _Tripwire(_SIGINT, step)

    def handler(signum: int, frame: FrameType | None) -> None:
        if tripwire.shows_in(frame):
            handle()

    with _sigint_handled_by(handler), _without_collector():
        tripwire.make(call)
    return tripwire.outcome


def collect(call: Callable[[], object], step: int, finalizer: Callable[[], None]) -> Interruption:
    """Make *call*, and before step number *step* let the collector loose on an object with *finalizer*."""
    tripwire = _Tripwire(_Collector(), step)

    def finalize() -> None:
        if tripwire.shows_in(sys._getframe(2)):
            finalizer()

    with _without_collector():
        _Garbage(finalize)
        tripwire.make(call)
        gc.collect(0)  # also what was not found in the call
    return tripwire.outcome


def each_step(most: int = 100_000) -> Iterator[int]:
    """Count steps from 0, and fail where an end was expected long ago."""
    for step in count():
        assert step < most, "there is no end to the steps"
        yield step


class Rescuer:
    """A thread that calls *rescue* once the main thread has come to stand still in a gate."""

    def __init__(self, rescue: Callable[[], object]) -> None:
        self.came = False
        self._rescue = rescue
        self._over = threading.Event()
        self._main_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        stood_still = 0
        while not self._over.wait(0.001):
            frame = sys._current_frames()[self._main_thread]
            stood_still = stood_still + 1 if frame.f_code is Gate.wait.__code__ else 0
            if stood_still == 5:
                self.came = True
                self._rescue()


class _Signal(int):
    """A signal number. Reading ``tripped`` notes the signal, and calls nothing from Python: that would be a
    check, and run the handler here.
    """

    tripped = property(interrupt_main)


_SIGINT = _Signal(signal.SIGINT)


class _Collector:
    """The collector. Reading ``tripped`` sets it going, and allocates nothing here."""

    enable = staticmethod(gc.enable)
    tripped = property(methodcaller("enable"))


class _Garbage:
    """An object that only the collector can free."""

    def __init__(self, finalize: Callable[[], None]) -> None:
        self._finalize = finalize
        self._me = self

    def __del__(self) -> None:
        self._finalize()


class _Tripwire:
    """Counts steps down in a trace function, and takes that off before it trips."""

    def __init__(self, trap: _Signal | _Collector, left: int) -> None:
        self.outcome = Interruption()
        self._trap = trap
        self._left = left
        self._top: FrameType | None = None

    def make(self, call: Callable[[], object]) -> None:
        """Make *call* in the main thread, where nothing else may trace."""
        assert threading.current_thread() is threading.main_thread()
        assert sys.gettrace() is None
        self._top = sys._getframe()
        try:
            sys.settrace(self._enter)
            call()
        finally:
            sys.settrace(None)
            self._top = None

    def shows_in(self, frame: FrameType | None) -> bool:
        """Note it if *frame* is below the library's, and return whether it is."""
        frames = list(self._below_top(frame))
        below = any(frame.f_trace is not None for frame in frames)
        if below:
            self.outcome.note(frames)
        return below

    def stretch(self, frame: FrameType | None, left: int) -> None:
        """Trip once more, *left* steps from here."""
        self._left = left
        for below in self._below_top(frame):
            self._watch(below)
        sys.settrace(self._enter)

    def _below_top(self, frame: FrameType | None) -> Iterator[FrameType]:
        while frame is not None and frame is not self._top:
            yield frame
            frame = frame.f_back

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        caller = frame.f_back
        if frame.f_code.co_filename.startswith(_LIBRARY) or (
            caller is not None and caller.f_trace is not None
        ):
            self._watch(frame)
            self._left -= 1
            if self._left < 0:
                sys.settrace(None)
                self.outcome.tripped += 1
                self._trap.tripped  # noqa: B018 - it has an effect, and nothing may be called after it
            return frame.f_trace
        return None

    def _watch(self, frame: FrameType) -> None:
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        frame.f_trace = partial(self._step, _inert(frame.f_code))

    def _step(self, inert: frozenset[int], frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti not in inert:
            self._left -= 1
            if self._left < 0:
                sys.settrace(None)
                self.outcome.tripped += 1
                self._trap.tripped  # noqa: B018 - as above
        return frame.f_trace


@cache
def _inert(code: CodeType) -> frozenset[int]:
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname in _INERT)


@contextmanager
def _sigint_handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep old garbage from being finalized during a call: Python swallows a KeyboardInterrupt there."""
    thresholds = gc.get_threshold()
    gc.collect(0)  # what is found later is young
    gc.disable()
    gc.set_threshold(1)  # from here on it is due: enabled, it runs at once
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
