"""Those that wait to be started, in order."""

from __future__ import annotations

from collections import OrderedDict

from areal_core._executor.rollout import Lane, Rollout

_Queue = OrderedDict[int, Rollout]


class Line:
    """Pending rollouts, and groups that have begun and wait for slots for the rest of their members.

    Begun groups come first, so that one that is larger than the concurrency is not overtaken for ever;
    then rows of `rollout_batch`, then all others.
    """

    def __init__(self) -> None:
        self.begun: _Queue = OrderedDict()
        self._rows: _Queue = OrderedDict()
        self._new: _Queue = OrderedDict()
        self.of_batches = 0
        """How many pending ones were submitted for batches."""

    @property
    def pending(self) -> int:
        """How many have not started."""
        return len(self._rows) + len(self._new)

    def add(self, rollout: Rollout, *, first: bool) -> None:
        """Let *rollout* wait; before all others of its kind where it is the *first*."""
        queue = self._queue_of(rollout)
        queue[rollout.task_id] = rollout
        if first:
            queue.move_to_end(rollout.task_id, last=False)
        self.of_batches += rollout.lane is Lane.BATCH

    def remove(self, rollout: Rollout) -> None:
        """Take out one that is pending."""
        del self._queue_of(rollout)[rollout.task_id]
        self.of_batches -= rollout.lane is Lane.BATCH

    def next(self, has_unit: bool) -> Rollout | None:
        """Return whose member starts next, given a slot."""
        for queue in (self.begun, self._rows, self._new if has_unit else ()):
            if queue:
                return queue[next(iter(queue))]
        return None

    def all_pending(self) -> list[Rollout]:
        """Return all that have not started."""
        return [*self._rows.values(), *self._new.values()]

    def _queue_of(self, rollout: Rollout) -> _Queue:
        return self._rows if rollout.lane is Lane.ROW else self._new
