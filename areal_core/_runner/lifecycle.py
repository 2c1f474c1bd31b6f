"""How a runner starts, how it ends, and how it is doing: what the public class is built on."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from areal_core import _process
from areal_core._runner import arguments
from areal_core._runner.gate import GateEvent
from areal_core._runner.life import DESTROY_TIMEOUT_S, Life, LifeSettings
from areal_core._runner.results import RunnerStats
from areal_core._runner.shelf import Shelf
from areal_core.errors import RunnerStoppedError

_ABROAD = "runner of another process"


class Lifecycle:
    """Has one life after another, each begun by ``initialize``."""

    def __init__(self, settings: LifeSettings) -> None:
        self._life: Life | None = None
        self._settings = settings
        self._exiting = GateEvent()
        self._lifecycle = threading.RLock()

    def initialize(self, logger: Any = None) -> None:
        """Start the loop thread and return when its loop runs.

        *logger* is a structlog or a standard logger; None means the standard logger ``areal_core``.
        After ``destroy`` or a death it starts clean and not paused; what was finished and never
        collected is dropped with one warning and counted as ``discarded``.

        Raises RuntimeError when it runs already, and whatever kept thread or loop from starting.
        """
        self._raise_if_abroad()
        with self._lifecycle:
            before = self._life
            if before is not None:
                if before.ending is None:
                    raise RuntimeError("the runner is initialized already; destroy() it first")
                raise_on_loop_thread(before, "initialize")
                before.end(DESTROY_TIMEOUT_S)
            life = Life(self._settings, self._exiting, logger)
            self._exiting.clear()
            try:
                life.start()
                if before is not None:
                    life.succeed(before)
                self._life = life
            except BaseException:
                life.request_end()  # also when a Ctrl-C came after it had started
                if self._life is None:
                    self._exiting.clear()  # there has been no life to exit from
                raise

    def destroy(self, timeout: float | None = DESTROY_TIMEOUT_S) -> None:
        """Stop everything within *timeout* seconds (None: however long it takes).

        Tasks are cancelled, loop cleanup runs, the loop is closed and the thread ends. What was finished
        stays collectable, and so do the ``cancelled`` outcomes this makes. Tasks that refuse to end are
        named in a log line and abandoned; if the thread itself is blocked, its stack is logged and it is
        left behind. Does nothing before ``initialize``, a second time, or in a forked child.

        Raises RuntimeError on the loop thread, which would wait for itself.
        """
        seconds = arguments.check_seconds("timeout", timeout)
        life = self._life
        if life is None or life.home is not _process.home():
            return
        raise_on_loop_thread(life, "destroy")
        life.end(seconds)

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.destroy()

    def __del__(self, home: Callable[[], object] = _process.home) -> None:
        # *home* bound here: when the interpreter ends, the names of modules may be gone before this object.
        life = getattr(self, "_life", None)
        if life is None or life.ending is not None or life.home is not home():
            return
        try:
            warnings.warn(
                f"unclosed runner {self!r}; destroy() it", ResourceWarning, stacklevel=2, source=self
            )
        finally:
            life.request_end()

    @property
    def paused(self) -> bool:
        """Whether tasks are kept from starting."""
        return self._life is not None and self._here().ledger.paused

    @property
    def exiting(self) -> threading.Event:
        """Set from the beginning of ``destroy`` or a death until the next ``initialize``. Do not set it."""
        self._raise_if_abroad()
        return self._exiting

    @property
    def thread(self) -> threading.Thread | None:
        """The loop thread; None before the first ``initialize``."""
        return None if self._life is None else self._here().thread.thread

    def get_queue_sizes(self) -> tuple[int, int]:
        """Return how many tasks are pending and how many are finished and not collected."""
        self._raise_if_abroad()
        stats = self.stats()
        return stats.pending, stats.finished

    def get_input_queue_size(self) -> int:
        """Return how many tasks are pending."""
        return self.get_queue_sizes()[0]

    def get_output_queue_size(self) -> int:
        """Return how many tasks are finished and not collected."""
        return self.get_queue_sizes()[1]

    def stats(self) -> RunnerStats:
        """Take a snapshot in which every task is counted once. In a forked child it says so, with zeros."""
        life = self._life
        if life is None:
            return RunnerStats()
        if life.home is not _process.home():
            return RunnerStats(state=_ABROAD)
        return life.ledger.stats(life.abandoned, _state(life))

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {stats.state} pending={stats.pending} running={stats.running} "
            f"finished={stats.finished} max_queue_size={self._settings.max_queue_size}>"
        )

    def _shelf(self, caller: str) -> Shelf:
        life = self._here()
        raise_on_loop_thread(life, caller)
        return life.ledger.shelf

    def _here(self) -> Life:
        life = self._life
        if life is None:
            raise RunnerStoppedError("the runner was never initialized; call initialize(), or use `with`")
        if life.home is not _process.home():
            self._raise_if_abroad()
        return life

    def _raise_if_abroad(self) -> None:
        if self._life is not None:
            raise_if_abroad(self._life)


def life_of(runner: Lifecycle) -> Life:
    """Return the life of *runner*, for what is hosted by it. Raises RunnerStoppedError where it has none."""
    return runner._here()


def raise_if_abroad(life: Life) -> None:
    """Raise RunnerStoppedError in a forked child, where locks may be held by threads that are not there."""
    if life.home is not _process.home():
        raise RunnerStoppedError(f"{_ABROAD}: its thread did not survive the fork; make a new runner here")


def _state(life: Life) -> str:
    if life.ending is None:
        return "paused" if life.ledger.paused else "running"
    return "stopped" if life.ending.cause is None else "died"


def raise_on_loop_thread(life: Life, caller: str) -> None:
    """Raise RuntimeError where *caller* would wait for its own thread."""
    if life.thread.is_current():
        raise RuntimeError(
            f"{caller}() on the runner's own loop thread would wait for itself for ever; "
            "call it from another thread, or await arun()"
        )
