"""Why nothing goes on: what an executor says of itself, on demand, in the log, or by a signal.

::

    print(executor.explain())                           # in any thread
    undo = install_explain_signal(signal.SIGUSR1)       # then: kill -USR1 <pid>, also where all of it hangs
    InferenceEngineConfig(stuck_warning=60.0)           # by itself, when no rollout has ended for a minute
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from areal_core._executor.explaining import explainers
from areal_core._executor.explanation import CapacityExplanation, Explanation, Reason, StuckRollout
from areal_core._log import describe
from areal_core._runner import exit_hook

if TYPE_CHECKING:
    from areal_core.workflow_executor import WorkflowExecutor

__all__ = ["CapacityExplanation", "Explanation", "Reason", "StuckRollout", "install_explain_signal"]

_Explain = Callable[[], object]


def install_explain_signal(signum: int, executor: WorkflowExecutor | None = None) -> Callable[[], None]:
    """Have signal *signum* print explanations to stderr: of *executor*, or, for None, of all that run.

    They come from a short-lived thread a moment after the signal. A handler in Python that was there is
    called too; the system's own, which may end the process, is not. Returns what puts the old one back, in
    the main thread.

    Raises ValueError outside of the main thread and for what is no signal, OSError for a signal that cannot
    be caught, TypeError for what is no executor.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("a signal can be taken in the main thread only; call install_explain_signal() there")
    if executor is not None and not callable(getattr(executor, "explain", None)):
        raise TypeError(f"executor is a {type(executor).__name__}; give a WorkflowExecutor, or None for all")
    handler = _Handler(None if executor is None else weakref.ref(executor))
    handler.earlier = signal.signal(signum, handler)
    return partial(_put_back, signum, handler)


class _Handler:
    """Runs in the main thread between any two of its lines: it takes no lock, and does nothing itself."""

    def __init__(self, executor: weakref.ref[WorkflowExecutor] | None) -> None:
        self._executor = executor
        self.earlier: Any = None
        self.is_on = True

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_on:
            exit_hook.run_aside(self._print)
        if callable(self.earlier):
            self.earlier(signum, frame)

    def _print(self) -> None:
        with contextlib.suppress(Exception):  # stderr may be closed, and nobody is there to tell
            text = "\n".join(map(_text, self._explains())) or "no executor runs"
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def _explains(self) -> Iterable[_Explain]:
        if self._executor is None:
            return [explainer.explain for explainer in explainers()]
        executor = self._executor()
        return [] if executor is None else [executor.explain]


def _text(explain: _Explain) -> str:
    try:
        return str(explain())
    except Exception as error:
        return f"the executor cannot be explained: {describe(error)}"


def _put_back(signum: int, handler: _Handler) -> None:
    handler.is_on = False  # somebody who came later may chain it, and goes on doing so
    earlier = signal.SIG_DFL if handler.earlier is None else handler.earlier
    if signal.getsignal(signum) is handler:
        signal.signal(signum, earlier)
