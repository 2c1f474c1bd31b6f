"""The tasks a runner answers for: the state that any thread may touch.

A job is in exactly one of three dicts, and that is all there is to its state::

    accept -> pending -> take_pending -> running -> publish -> finished (the shelf) -> collected
                 |                                                ^
                 +------------------- cancel ---------------------+

Why the order of the statements matters: see the shelf.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence

from areal_core._runner.ending import Ending
from areal_core._runner.gate import GateEvent
from areal_core._runner.job import Job
from areal_core._runner.results import RunnerStats, Status
from areal_core._runner.shelf import Shelf
from areal_core._runner.sink import Sink
from areal_core.errors import TaskQueueFullError


class Ledger(Sink):
    """The bookkeeping of one life of a runner; the sink of its launcher. Any thread may call it.

    *request_start* and *request_cancel* are called under the lock, and must only post to the loop.
    """

    def __init__(
        self,
        max_queue_size: int,
        request_start: Callable[[], None],
        request_cancel: Callable[[], None],
    ) -> None:
        # Re-entrant: the garbage collector may run a __del__ that calls back in, anywhere in here.
        self._lock = threading.RLock()
        self._max_queue_size = max_queue_size
        self._request_start = request_start
        self._request_cancel = request_cancel
        self._submitted = 0
        self._pending: dict[int, Job] = {}
        self._running: dict[int, Job] = {}
        self.shelf = Shelf(self._lock, self._unfinished, self._is_unfinished)
        self._cancelled: list[Job] = []  # running, decided, and not yet cancelled by the loop thread
        self.paused = False

    # -- what callers do ---------------------------------------------------------------------------

    def accept(self, job: Job) -> None:
        """Answer for *job*. Raises TaskQueueFullError, ValueError for an id in use, and the ending."""
        task_id = job.task_id
        shelf = self.shelf
        lock = self._lock
        # Not "with lock", which takes twice as long: of a burst a twentieth. A signal is taken after a call,
        # so that from acquire() on each exception comes through here, and none between here and release().
        try:
            lock.acquire()
            while True:
                submitted = self._submitted
                if shelf.ending is not None:
                    raise shelf.ending.error()
                if shelf.returned:
                    shelf.take_back()
                pending, running, finished = self._pending, self._running, shelf.finished
                if len(pending) + len(running) + len(finished) >= self._max_queue_size:
                    raise TaskQueueFullError(self._full_message())
                if task_id in running or task_id in pending or task_id in finished:
                    raise ValueError(
                        f"task_id={task_id} is in use until its result is collected; pass another, or none"
                    )
                if not pending and not self.paused:
                    self._request_start()  # before the stores: one start too many harms nothing
                if self._submitted == submitted:
                    break  # else a finalizer submitted meanwhile
            pending[task_id] = job
            self._submitted += 1
        except BaseException:
            try:
                lock.release()
            except RuntimeError:  # interrupted while it waited for the lock
                pass
            raise
        lock.release()

    def _full_message(self) -> str:
        return (
            f"Input queue full: {self._max_queue_size} tasks are not collected "
            f"({len(self._pending)} pending, {len(self._running)} running, "
            f"{len(self.shelf.finished)} finished); collect results with wait(), or raise max_queue_size"
        )

    def pause(self) -> None:
        """Start nothing more until resume()."""
        with self._lock:
            self.shelf.raise_if_ended()
            self.paused = True

    def resume(self) -> None:
        """Start what is pending, and whatever comes."""
        with self._lock:
            self.shelf.raise_if_ended()
            if self._pending:
                self._request_start()
            self.paused = False

    def cancel(self, task_id: int) -> tuple[bool, Job | None]:
        """Decide that a task is cancelled: whether that stands, and the job if it ended here and now."""
        with self._lock:
            self.shelf.raise_if_ended()
            while (job := self._pending.get(task_id)) is not None:
                if self.shelf.shelve_cancelled(job, self._pending):
                    return True, job
            job = self._running.get(task_id)
            if job is None:
                job = self.shelf.finished.get(task_id)
            elif job.is_open:
                if not self._cancelled:
                    self._request_cancel()
                self._cancelled.append(job)  # before the decision: undecided ones are passed over
                job.decision = "cancelled"
            return job is not None and job.decision == "cancelled", None

    # -- what the loop thread does -----------------------------------------------------------------

    def take_pending(self) -> list[Job]:
        """Move what is pending to running, unless paused, and return it in the order of submit."""
        with self._lock:
            if self.paused or self.shelf.ending is not None:
                return []
            batch, self._pending = self._pending, {}
            if self._running:
                self._running.update(batch)
            else:  # as so often, and a burst costs nothing
                self._running = batch
            return list(batch.values())

    def put_back(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Make *jobs* pending again, before all others; return those that were cancelled meanwhile."""
        with self._lock:
            jobs = [job for job in jobs if job.task_id in self._running]  # else their thread was left behind
            again = {job.task_id: job for job in jobs if job.decision is None}
            for task_id in again:
                del self._running[task_id]
            # What a finalizer submits from here on comes behind them.
            self._pending, later = again, self._pending
            again.update(later)
            if not self.paused:
                self._request_start()
            return [job for job in jobs if job.decision is not None]

    def take_cancelled(self) -> list[Job]:
        """Return the running jobs that were decided to be cancelled since the last call."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, []
            return [job for job in cancelled if job.decision is not None and job.task_id in self._running]

    def decide(self, job: Job, decision: Status) -> bool:
        """Let *decision* be the outcome of a running job, unless one was decided before."""
        with self._lock:
            if job.is_open:
                job.decision = decision
            return job.decision == decision

    def publish(self, jobs: Sequence[Job]) -> None:
        """Make the outcomes of running *jobs* final, and hand them to whoever waits."""
        with self._lock:
            self.shelf.shelve(jobs, self._running)
            self.shelf.serve()

    # -- ending ------------------------------------------------------------------------------------

    def end(self, ending: Ending, exiting: GateEvent) -> None:
        """Accept and start nothing more, wake everybody who is blocked, and set *exiting* the first time."""
        with self._lock:
            if self.shelf.ending is None:
                exiting.set()
            self.shelf.end(ending)

    def decide_all(self) -> list[Job]:
        """Let all that has not ended be cancelled, finish what never started, and return both."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._running.update(pending)
            ended = [job for job in self._running.values() if job.finish_time]
            self.publish(sorted(ended, key=_finish_time))  # their launcher may be past doing so
            undecided = [job for job in self._running.values() if job.is_open]
            for job in undecided:
                job.decision = "cancelled"
            self._finish(list(pending.values()))
            return undecided

    def still_running(self) -> list[Job]:
        """Return the jobs that have started and have no outcome."""
        with self._lock:
            return list(self._running.values())

    def abandon(self, jobs: Sequence[Job]) -> None:
        """Finish running *jobs*, though their tasks go on."""
        with self._lock:
            # What is delivered are copies: their own thread may be about to note another outcome.
            self._finish([copy.copy(job) for job in jobs])
            for job in jobs:
                job.end(time.monotonic_ns())

    def succeed(self, predecessor: Ledger) -> int:
        """Carry on the counters of *predecessor*; what it holds uncollected is discarded, and counted."""
        dropped = predecessor.shelf.discard_all()
        before = predecessor.stats(0, "")
        with self._lock:
            self._submitted += before.submitted
            self.shelf.collected += before.collected
            self.shelf.discarded += before.discarded
        return dropped

    def _finish(self, jobs: Sequence[Job]) -> None:
        # A nanosecond apart: it is by their times that results put back find their places.
        for now, job in enumerate(jobs, time.monotonic_ns()):
            job.end(now)
        self.publish(jobs)

    # -- looking -----------------------------------------------------------------------------------

    def stats(self, abandoned: int, state: str) -> RunnerStats:
        """Take a snapshot in which every job is counted once."""
        with self._lock:
            while True:
                if self.shelf.returned:
                    self.shelf.take_back()
                submitted, changes = self._submitted, self.shelf.changes
                stats = RunnerStats(
                    submitted=submitted,
                    pending=len(self._pending),
                    running=len(self._running),
                    finished=len(self.shelf.finished),
                    collected=self.shelf.collected,
                    discarded=self.shelf.discarded,
                    abandoned=abandoned,
                    state=state,
                )
                if self._submitted == submitted and self.shelf.changes == changes:
                    return stats

    def _unfinished(self) -> int:
        return len(self._pending) + len(self._running)

    def _is_unfinished(self, task_id: int) -> bool:
        return task_id in self._pending or task_id in self._running


def _finish_time(job: Job) -> int:
    return job.finish_time
