"""SIGTERM and SIGINT as requests to stop, from the first moment to the last."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Take the signals over at once; one that comes before somebody listens is kept.

    The loop's own ``add_signal_handler`` would leave two gaps: while aiohttp is imported, and between
    the close of the loop and the end of the process. A signal in either would show as a traceback.
    """

    def __init__(self) -> None:
        self._received = False
        self._wake: Callable[[], object] | None = None
        for signum in _SIGNALS:
            signal.signal(signum, self._receive)

    @contextmanager
    def sent_to(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> Iterator[None]:
        """Have *stop* called on *loop* for each signal, for one that came before too."""
        self._wake = lambda: loop.call_soon_threadsafe(stop)
        if self._received:
            stop()
        try:
            yield
        finally:
            self._wake = None

    def ignore(self) -> None:
        """Ignore the signals from now on: the process is ending."""
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _receive(self, _signum: int, _frame: FrameType | None) -> None:
        self._received = True
        if self._wake is not None:
            self._wake()
