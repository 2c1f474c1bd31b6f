"""What was submitted, and where all of it is. The books balance after every event."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from areal_core._executor.outcome import Status
from areal_core._executor.rollout import Rollout, State


@dataclass(frozen=True, slots=True)
class RolloutLedger:
    """A snapshot: ``submitted == pending + running + finished + collected + discarded``, always.

    So is ``accepted + rejected + failed + timed_out + cancelled + stale == finished + collected +
    discarded``. It counts rollouts, a group once, over the life of the executor object.
    """

    submitted: int = 0
    pending: int = 0
    """Not started."""
    running: int = 0
    """Started, without an outcome."""
    finished: int = 0
    """With an outcome, and not collected."""
    collected: int = 0
    """Handed to the caller."""
    discarded: int = 0
    """Finished, never collected, and dropped by a later ``initialize``."""
    accepted: int = 0
    """Ended with a trajectory, and did not become too old before it was collected."""
    rejected: int = 0
    """The workflow, or the filter, said no."""
    failed: int = 0
    """Raised."""
    timed_out: int = 0
    cancelled: int = 0
    stale: int = 0
    """Too old, at the end or before anybody collected it."""
    requeued: int = 0
    """How often one that was too old was run again; each of them is in one of the numbers above, too."""
    lost: int = 0
    """How often one was lost with the worker that ran it, and was run again."""

    def with_pending(self, count: int) -> RolloutLedger:
        """Return the same with *count* more that were submitted a moment ago."""
        return replace(self, submitted=self.submitted + count, pending=self.pending + count)

    def __str__(self) -> str:
        return " ".join(f"{spec.name}={getattr(self, spec.name)}" for spec in fields(self))


class Books:
    """The counters behind a `RolloutLedger`. Each method is one event of one rollout."""

    def __init__(self, before: RolloutLedger) -> None:
        self._counts = {spec.name: getattr(before, spec.name) for spec in fields(before)}
        self._move("finished", "discarded", self._counts["finished"])

    def submitted(self) -> None:
        """One more is pending."""
        self._counts["submitted"] += 1
        self._counts["pending"] += 1

    def began(self) -> None:
        """One that was pending runs."""
        self._move("pending", "running")

    def ended(self, was: State, status: Status) -> None:
        """One that *was* pending or running has an outcome."""
        self._move("pending" if was is State.PENDING else "running", "finished")
        self._counts[status] += 1

    def runs_again(self, was: State) -> None:
        """One that *was* running, or was accepted, is pending again."""
        if was is State.FINISHED:
            self._counts["accepted"] -= 1
        self._move("finished" if was is State.FINISHED else "running", "pending")
        self._counts["requeued"] += 1

    def was_lost(self) -> None:
        """One that was running is pending again: its worker died."""
        self._move("running", "pending")
        self._counts["lost"] += 1

    def went_stale(self) -> None:
        """One that was accepted is too old."""
        self._move("accepted", "stale")

    def collected(self, count: int) -> None:
        """Finished ones were given to a caller; those of a negative *count* came back."""
        self._move("finished", "collected", count)

    def snapshot(self) -> RolloutLedger:
        """Return the counts now."""
        return RolloutLedger(**self._counts)

    def _move(self, source: str, target: str, count: int = 1) -> None:
        self._counts[source] -= count
        self._counts[target] += count


class BothBooks:
    """Those of training, and those of evaluation."""

    def __init__(self, training: RolloutLedger, evaluation: RolloutLedger) -> None:
        self.training = Books(training)
        self.evaluation = Books(evaluation)

    def of(self, rollout: Rollout) -> Books:
        """Return those in which *rollout* is counted."""
        return self.evaluation if rollout.plan.is_eval else self.training
