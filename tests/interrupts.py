"""Ctrl-C at a chosen step of a call: a signal without chance in it.

CPython notes a signal at once and runs its handler at the main thread's next check: after a call of C code,
at a function's entry, at a jump backwards. A signal from outside hits one check or another by luck.
`interrupt` counts the steps that the main thread takes below the library's frames, trips the signal before
the chosen one, and leaves the rest to the interpreter: the handler then runs exactly where it would have
run, and frames, exception tables and locks are what they would have been.
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
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import areal_core

_LIBRARY = str(Path(areal_core.__file__).parent)

# Instructions in which nothing can be noticed. A signal before one of them is noticed where one before the
# next instruction is.
_INERT = {
    "BUILD_LIST", "BUILD_MAP", "BUILD_TUPLE", "CACHE", "CHECK_EXC_MATCH", "COMPARE_OP", "CONTAINS_OP",
    "COPY", "COPY_FREE_VARS", "EXTENDED_ARG", "GEN_START", "IS_OP", "JUMP_FORWARD", "KW_NAMES", "LIST_EXTEND",
    "LOAD_CLOSURE", "LOAD_CONST", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_CHECK",
    "LOAD_FAST_LOAD_FAST", "LOAD_GLOBAL", "MAKE_CELL", "MAKE_FUNCTION", "NOP", "POP_EXCEPT",
    "POP_JUMP_FORWARD_IF_FALSE", "POP_JUMP_FORWARD_IF_NONE", "POP_JUMP_FORWARD_IF_NOT_NONE",
    "POP_JUMP_FORWARD_IF_TRUE", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_NONE", "POP_JUMP_IF_NOT_NONE",
    "POP_JUMP_IF_TRUE", "PRECALL", "PUSH_EXC_INFO", "PUSH_NULL", "RAISE_VARARGS", "RERAISE", "RETURN_CONST",
    "RETURN_GENERATOR", "RETURN_VALUE", "SWAP", "TO_BOOL", "UNPACK_SEQUENCE", "YIELD_VALUE",
}  # fmt: skip


@dataclass
class Interruption:
    """What became of the signals tripped in one call."""

    tripped: int = 0
    """How many there were: fewer than asked for when the call was over before."""
    noticed: int = 0
    """How many of them were noticed inside the library."""
    where: str = "nowhere"
    """The lines at which they were, innermost first."""

    def note(self, frames: Sequence[FrameType]) -> None:
        """Note where a signal was noticed."""
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
    return _Tripwire(gaps).make(call)


def each_step(most: int = 100_000) -> Iterator[int]:
    """Count steps from 0, and fail where an end was expected long ago."""
    for step in count():
        assert step < most, "there is no end to the steps"
        yield step


class _Signal(int):
    """A signal number. Reading ``tripped`` notes the signal without a check, which would run its handler
    here: nothing is called from Python.
    """

    tripped = property(interrupt_main)


_SIGINT = _Signal(signal.SIGINT)


class _Tripwire:
    """Counts steps down in a trace function, and takes it off before it trips the signal."""

    def __init__(self, gaps: tuple[int, ...]) -> None:
        self._gaps = list(gaps)
        self._left = self._gaps.pop(0)
        self._top: FrameType | None = None
        self._outcome = Interruption()

    def make(self, call: Callable[[], object]) -> Interruption:
        assert threading.current_thread() is threading.main_thread()
        assert sys.gettrace() is None, "something else traces this thread"
        self._top = sys._getframe()
        with _sigint_handled_by(self._notice), _without_collector():
            try:
                try:
                    sys.settrace(self._enter)
                    call()
                finally:
                    sys.settrace(None)  # at the latest here a signal is noticed that the call did not notice
            except KeyboardInterrupt:
                pass
        self._top = None
        return self._outcome

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        caller = frame.f_back
        if frame.f_code.co_filename.startswith(_LIBRARY) or (
            caller is not None and caller.f_trace is not None
        ):
            self._watch(frame)
            self._left -= 1
            if self._left < 0:
                sys.settrace(None)
                self._outcome.tripped += 1
                _SIGINT.tripped  # noqa: B018 - it has an effect, and after it nothing is called here
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
                self._outcome.tripped += 1
                _SIGINT.tripped  # noqa: B018 - as above
        return frame.f_trace

    def _notice(self, signum: int, frame: FrameType | None) -> None:
        frames = list(self._below_top(frame))
        if any(frame.f_trace is not None for frame in frames):
            self._outcome.note(frames)
            if self._gaps:
                self._left = self._gaps.pop(0)
                for frame in frames:
                    self._watch(frame)
                sys.settrace(self._enter)
        raise KeyboardInterrupt

    def _below_top(self, frame: FrameType | None) -> Iterator[FrameType]:
        while frame is not None and frame is not self._top:
            yield frame
            frame = frame.f_back


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
    """Keep old garbage from being finalized during the call: Python swallows what is raised there."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
