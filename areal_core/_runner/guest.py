"""Somebody else whose jobs run on the runner's loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from areal_core._runner.ending import Ending
from areal_core._runner.job import Job
from areal_core._runner.sink import Sink


class Guest(Sink):
    """A sink with a launcher of its own, whose jobs are in nobody's ledger but its.

    It is told of the runner's end on the loop thread, or, where that is blocked and left behind, on another
    one, while the loop thread may come back at any time.
    """

    @abstractmethod
    def begin_end(self, ending: Ending) -> None:
        """Launch nothing more, and decide that what runs is cancelled. All tasks are cancelled after this."""

    @abstractmethod
    def finish_end(self) -> None:
        """Publish, as abandoned, what still runs. Nothing of the runner works any more. May come twice."""

    @abstractmethod
    def jobs(self) -> Iterable[Job]:
        """Return those that run."""
