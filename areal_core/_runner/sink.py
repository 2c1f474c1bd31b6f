"""Where outcomes go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from areal_core._runner.job import Job
from areal_core._runner.results import Status


class Sink(ABC):
    """Is given each outcome by the launcher that made it. The ledger behind ``wait`` is one.

    One whose jobs know no deadline and no pause has only `publish` to say.
    """

    paused = False
    """Whether jobs that have not taken their first step should be put back."""

    @abstractmethod
    def publish(self, jobs: Sequence[Job]) -> None:
        """Take the outcomes of *jobs*, in the order they finished."""

    def decide(self, job: Job, decision: Status) -> bool:
        """Let *decision* be the outcome of a job that runs; return whether it is."""
        job.decision = decision
        return True

    def put_back(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Keep *jobs*, launched and not started, until the pause is over; return those to end instead."""
        raise NotImplementedError
