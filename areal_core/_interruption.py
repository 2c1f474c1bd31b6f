"""A body of a coroutine that something outside of it may end, with an error of its own."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Interruption(ABC):
    """A context whose body ends with `_error` once `_interrupt` is called, on the loop of the body.

    It is told from a cancellation by others as `asyncio.timeout` tells one, and takes no timer: there are two
    for each reply that is on its way.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        """Where the body runs."""
        self._task: asyncio.Task[object] | None = None  # None before the body and behind it
        self._interrupted = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        is_ours = self._interrupted and task is not None and task.uncancel() <= self._cancelling
        # A task that ends with what is raised here keeps this frame, which must not keep it in turn.
        del task, error, trace
        if is_ours and kind is asyncio.CancelledError:  # else others have cancelled it since, or it went on
            raise self._error() from None

    def _interrupt(self) -> None:
        """End the body, from outside of it. Nothing happens before it, behind it, or a second time."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def _interrupt_soon(self) -> None:
        """Do that on the loop; any thread may."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and it is over
            self.loop.call_soon_threadsafe(self._interrupt)

    @abstractmethod
    def _error(self) -> Exception:
        """Return what the body ends with."""
