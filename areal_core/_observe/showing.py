"""Show what an executor does while it does it, from a thread of its own: `Showing`.

::

    a thread, four times a second or once     snapshot --> rates --> progress bar on stderr
    the end of the executor wakes it                            +-> status file, once a second

Neither the loop nor the trainer ever waits for it; and what fails there is said once, in the log.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from areal_core._executor.observer import Observer
from areal_core._executor.snapshot import Snapshot
from areal_core._log import describe, get_logger, log
from areal_core._observe.rates import Rates
from areal_core._observe.runs import EVERY_S
from areal_core._runner import exit_hook
from areal_core._runner.gate import Gate, thread_of_gates
from areal_core.config import InferenceEngineConfig

_BAR_EVERY_S = 0.25
_BAR_FROM_S = 0.5  # what is over sooner needs no bar
_REST = 20  # times what it has computed: with very many rollouts it looks less often
_STOPPED_S = 5.0  # it ends at once, unless a disk hangs

_numbers = itertools.count(1)


def show(config: InferenceEngineConfig, logger: Any, observer: Observer, before: Showing | None) -> Showing:
    """Return what shows what *observer* sees, as *config* asks for it; see `Showing`."""
    return Showing(observer, config.progress, config.status_file, logger, before)


class Showing:
    """Shows what *observer* sees, as ``progress`` and ``status_file`` of a configuration ask for.

    *before* is the one of the executor's life before, whose file it goes on writing.
    """

    def __init__(
        self,
        observer: Observer,
        progress: bool | None,
        status_file: str | os.PathLike[str] | bool,
        logger: Any,
        before: Showing | None,
    ) -> None:
        self._observer = observer
        self._progress = progress
        self._logger = get_logger(logger)
        self._rates = Rates()
        self._over = Gate()
        self._finished = Gate()
        self._thread: threading.Thread | None = None
        self._bar: Any = None
        self._failed: set[str] = set()
        self._file: Any = None if before is None else before._file
        if self._file is None and status_file is not False:
            try:
                self._file = _file(None if status_file is True else Path(status_file))
            except Exception as error:  # there is no working directory, or no more descriptors
                self._fail("status_file", error, path=str(status_file))

    def begin(self) -> None:
        """Show from now on, if anything is to be shown. Never raises but for a Ctrl-C."""
        self._progress = wants_progress(self._progress)
        if self._file is None and not self._progress:
            return
        thread = thread_of_gates(self._run, "areal-core-showing", daemon=True)
        try:
            exit_hook.add(self)
            thread.start()
        except RuntimeError as error:  # there is no thread to be had
            exit_hook.discard(self)
            self._fail("thread", error)
        else:
            self._thread = thread

    def end(self) -> None:
        """Show how all of it ended, and nothing more; from any thread, without waiting for that."""
        self._over.open()

    def close(self, timeout_s: float | None) -> None:
        """`end`, and wait for it, *timeout_s* seconds at most (None: five)."""
        self.end()
        thread = self._thread
        # Not join alone: it misses the end after a Ctrl-C on 3.11.
        if thread is not None and self._finished.wait(_STOPPED_S if timeout_s is None else timeout_s):
            thread.join(_STOPPED_S)

    def leave(self, deadline: float) -> None:
        """Do nothing: the executor ends too, and says so."""

    def join(self, deadline: float) -> None:
        """Wait for the end, until *deadline* at most: the interpreter exits."""
        self._finished.wait(deadline - time.monotonic())

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._show_until_the_end()
        except BaseException as error:  # of ours, or the memory ran out
            self._fail("thread", error)
        finally:
            self._finished.open()
            exit_hook.discard(self)

    def _show_until_the_end(self) -> None:
        every_s = _BAR_EVERY_S if self._progress else EVERY_S
        due = time.monotonic()
        written_at = due - EVERY_S
        is_over = False
        while not is_over:
            is_over = self._over.wait(due - time.monotonic())
            begun, computed_s = time.monotonic(), time.thread_time()
            snapshot = self._observer.look()
            self._rates.add(snapshot)
            if self._file is not None and (is_over or begun - written_at >= EVERY_S - every_s / 2):
                written_at = begun
                self._write(snapshot)
            if self._progress and not is_over:
                self._draw(snapshot)
            rest_s = _REST * (time.thread_time() - computed_s)
            due = max(due + every_s, time.monotonic() + rest_s)
        self._close_bar()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._file.write(snapshot, self._rates)
        except Exception as error:  # and next time it may go well
            self._fail("status_file", error, path=str(self._file.path or ""))

    def _draw(self, snapshot: Snapshot) -> None:
        try:
            if self._bar is None:
                if snapshot.uptime_s < _BAR_FROM_S:
                    return
                from areal_core._observe.progress import open_progress

                self._bar = open_progress()
            self._bar.show(snapshot, self._rates)
        except Exception as error:  # the terminal is gone
            self._progress = False
            self._fail("progress", error)

    def _close_bar(self) -> None:
        if self._bar is not None:
            try:
                self._bar.close()
            except Exception as error:
                self._fail("progress", error)

    def _fail(self, what: str, error: BaseException, **fields: str) -> None:
        if what not in self._failed:
            self._failed.add(what)
            log(self._logger, "warning", "not_shown", {"what": what, **fields, "error": describe(error)})


def wants_progress(progress: bool | None) -> bool:
    """Return whether progress is to be shown: where None is said, on a terminal that can show a bar."""
    if progress is not None:
        return progress
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):  # None, or closed
        return False


def _file(path: Path | None) -> Any:
    from areal_core._observe.status_file import StatusFile  # not everybody's

    return StatusFile(path and path.absolute(), next(_numbers))  # wherever the program goes
