"""The soak run's own books: what became of each item, told by the log and by what the trainer was given.

They are kept apart from the library's, so that the two can be compared. Items have numbers, in which they are
data ids as well, and the task ids of those that are submitted singly. No Ctrl-C interrupts this module.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from _soak_items import MAY_BE_ACCEPTED, item_of, kind_of
from _soak_tokens import Judge, number_of
from areal_core.workflow_executor import RolloutOutcome

BATCH, OPEN, ROW, EVAL, EVAL_ROW = range(5)
"""How an item got to the executor: by a dataloader, by `submit`, by `rollout_batch`; the last two again for
evaluation."""

_IS_EVAL = (False, False, False, True, True)

STATUSES = ("accepted", "rejected", "failed", "timed_out", "cancelled", "stale")
_KEPT_COMPLAINTS = 40


class Complaints(list[str]):
    """What was found to be wrong; of a great many, the first."""

    def say(self, complaint: str) -> None:
        """Keep one more, unless there are enough to see what is wrong."""
        if len(self) < _KEPT_COMPLAINTS:
            self.append(complaint)


class Books:
    """What is known of each item, in a few bytes each: a run has a hundred thousand of them.

    *version* says the policy version now. What is handed out must not have a token trained on that is more
    than *bound* versions older.
    """

    def __init__(self, seed: int, bound: int, version: Callable[[], int]) -> None:
        self.seed = seed
        self.complaints = Complaints()
        self.judge = Judge(bound)
        self._bound = bound
        self._version = version
        self._lane = bytearray()
        self._is_sure = bytearray()  # whether its submit returned
        self._endings = array("h")  # how often it ended, less how often it was run again after that
        self._accepted = array("h")  # the same of its acceptances, less how often it was too old then
        self._status = bytearray()  # the last one, as the place in STATUSES
        self._ended_at = array("l")  # version
        self._task = array("q")
        self._taken = bytearray()  # how often the trainer was given how it ended
        self._open = array("l")  # numbers of which not all is known yet
        self.unnamed = 0
        """How many endings the trainer was given as a None that does not say whose it is."""
        self.endings = (Counter[str](), Counter[str]())
        """Of training and of evaluation: how many ended in which way, and stayed so."""
        self.submitted = [0, 0]
        self.taken = [0, 0]
        self.accepted_and_taken = [0, 0]
        self.dropped = 0
        """Trajectories that no batch had taken when the executor was stopped."""
        self.pulled = 0

    # -- what the trainer does ---------------------------------------------------------------------

    def new(self, lane: int) -> dict[str, Any]:
        """Make the next item."""
        number = len(self._lane)
        for column, value in (
            (self._lane, lane),
            (self._is_sure, 0),
            (self._endings, 0),
            (self._accepted, 0),
            (self._status, 0),
            (self._ended_at, 0),
            (self._task, -1),
            (self._taken, 0),
        ):
            column.append(value)
        self._open.append(number)
        return item_of(self.seed, number)

    def lists(self, length: int) -> Iterator[list[dict[str, Any]]]:
        """Yield lists of new items, without an end: a dataloader."""
        while True:
            self.pulled += length
            yield [self.new(BATCH) for _ in range(length)]

    def confirm(self, number: int) -> None:
        """Take note that the submit of an item has returned."""
        self._is_sure[number] = 1

    def take(self, trajectory: dict[str, Any], version: int, lane: int | None = None) -> int:
        """Take note of a trajectory that the trainer was given at *version*, or later; return its item."""
        number = number_of(trajectory)
        is_eval = _IS_EVAL[self._lane[number]]
        for complaint in self.judge.complaints(trajectory, version, is_bounded=not is_eval):
            self.complaints.say(f"item {number}: {complaint}")
        if lane is not None and self._lane[number] != lane:
            self.complaints.say(f"item {number} came out where {lane=} comes out")
        self._take(number)
        self.accepted_and_taken[is_eval] += 1
        return number

    def take_one(self, number: int, trajectory: dict[str, Any] | None, version: int) -> None:
        """Take note of what the trainer was given for an item that it asked for."""
        if trajectory is None:
            self._take(number)
        elif self.take(trajectory, version) != number:
            self.complaints.say(f"item {number} was answered with the trajectory of another")

    def take_outcome(self, outcome: RolloutOutcome, version: int) -> None:
        """Take note of an outcome."""
        number = outcome.data_id
        if self._lane[number] in (OPEN, EVAL) and outcome.task_id != number:
            self.complaints.say(f"item {number} is the data of task {outcome.task_id}")
        if (outcome.trajectory is None) != (outcome.status != "accepted"):
            self.complaints.say(f"item {number} is {outcome.status}, {outcome.trajectory is None=}")
        self.take_one(number, outcome.trajectory, version)

    def _take(self, number: int) -> None:
        self._taken[number] += 1
        self.taken[_IS_EVAL[self._lane[number]]] += 1

    # -- what the log says ---------------------------------------------------------------------------

    def started(self, number: int, task: int) -> None:
        """Take note that the rollout *task* of an item has started."""
        if self._task[number] not in (-1, task):
            self.complaints.say(f"item {number} is played by the rollouts {self._task[number]} and {task}")
        self._task[number] = task

    def ended(self, number: int, status: str) -> None:
        """Take note that a rollout has ended."""
        self._endings[number] += 1
        self._accepted[number] += status == "accepted"
        self._status[number] = STATUSES.index(status)
        self._ended_at[number] = self._version()

    def went_stale(self, number: int, runs_again: bool) -> None:
        """Take note that a trajectory is too old now."""
        self._accepted[number] -= 1
        self._endings[number] -= runs_again
        if not runs_again:
            self._status[number] = STATUSES.index("stale")

    # -- when the executor does not run ----------------------------------------------------------------

    def settle(self, is_last: bool = False) -> None:
        """See that all that was submitted has ended, and where that went. Nothing runs now."""
        still_open = array("l")
        for number in self._open:
            if self._endings[number]:
                self._settle(number)
            else:  # still in the executor's hands, or its submit was interrupted
                still_open.append(number)
                if self._is_sure[number]:
                    self.complaints.say(f"item {number} was submitted, and never ended")
        self._open = array("l") if is_last else still_open
        if is_last:
            self._see_left(still_open)

    def _see_left(self, left: Sequence[int]) -> None:
        if self.unnamed:
            self.complaints.say(f"{self.unnamed} times None was handed out more often than it can have been")
        lost = [number for number in left if self._lane[number] == BATCH]
        if lost:
            self.complaints.say(
                f"{len(lost)} items were taken from the dataloader and not played: {lost[:9]}"
            )

    def _settle(self, number: int) -> None:
        lane, status = self._lane[number], STATUSES[self._status[number]]
        is_eval, is_accepted, taken = _IS_EVAL[lane], self._accepted[number], self._taken[number]
        self.submitted[is_eval] += 1
        self.endings[is_eval]["accepted" if is_accepted else status] += 1
        if self._endings[number] != 1 or is_accepted not in (0, 1):
            self.complaints.say(
                f"item {number} ended {self._endings[number]} times, {is_accepted} times accepted"
            )
        if taken > 1:
            self.complaints.say(f"item {number} was handed out {taken} times")
        if is_accepted and kind_of(self.seed, number) not in MAY_BE_ACCEPTED:
            self.complaints.say(f"item {number}, which {kind_of(self.seed, number)}, was accepted")
        if taken or (lane != BATCH and not is_accepted and self._is_unnamed(number)):
            return
        if lane != BATCH:
            self.complaints.say(f"item {number} ended, {status}, and was never handed out")
        elif is_accepted:
            self.dropped += 1
            if self._ended_at[number] < self._version() - self._bound:
                self.complaints.say(f"item {number} was accepted, and neither handed out nor called too old")

    def _is_unnamed(self, number: int) -> bool:
        if _IS_EVAL[self._lane[number]] or not self.unnamed:
            return False
        self.unnamed -= 1
        self.taken[0] += 1
        return True
