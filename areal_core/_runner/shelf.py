"""Results that wait to be collected, and the threads that wait for results.

**Ctrl-C.** CPython takes a signal in the main thread at calls, at function entry and at backward
jumps, never between two plain stores. So each method that a caller's thread runs first does whatever
may call or fail, waking waiters included (they look again, and need the lock to do so), and then
commits by adjacent stores: an interrupt sees all of them or none. What a waiter holds when it is
interrupted comes back through ``returned.append``, one C call that no signal can split.

**Finalizers.** Where a call is made or an object allocated, the collector may run a ``__del__`` that calls
back in: the lock is no obstacle in its own thread. So a commit is preceded by a look at ``changes``; when
that has moved on, what was worked out before is thrown away.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import filterfalse, islice

from areal_core._runner import exit_hook
from areal_core._runner.ending import Ending
from areal_core._runner.gate import Gate
from areal_core._runner.job import Job
from areal_core.errors import UnknownTaskError

_exhaust = deque[object](maxlen=0).extend  # to the end of an iterator, in one C call


class Holding:
    """What one waiter has taken from the shelf or claimed on it, until it is its caller's."""

    __slots__ = ("claim", "jobs", "waiter")

    def __init__(self) -> None:
        self.jobs: Sequence[Job] = ()
        self.claim: int | None = None
        self.waiter: _Waiter | None = None


class _Waiter:
    """Somebody who waits for *count* unclaimed results, or, if *or_idle*, for the last to be gone."""

    __slots__ = ("count", "gate", "or_idle")

    def __init__(self, count: int, or_idle: bool) -> None:
        self.count = count
        self.or_idle = or_idle
        self.gate = Gate()


class Shelf:
    """Finished jobs in the order of finishing, claims on jobs in any state, and who waits for them.

    *lock* is the ledger's; *unfinished* counts the jobs that have no outcome yet, *is_unfinished* asks
    for one by its id. ``shelve``, ``shelve_cancelled``, ``serve``, ``wake_all`` and ``end`` are called with
    the lock held.
    """

    def __init__(
        self,
        lock: threading.RLock,
        unfinished: Callable[[], int],
        is_unfinished: Callable[[int], bool],
    ) -> None:
        self._lock = lock
        self._unfinished = unfinished
        self._is_unfinished = is_unfinished
        self.finished: OrderedDict[int, Job] = OrderedDict()
        self._claims: dict[int, Gate] = {}
        self._claimed_finished = 0
        self._waiters: list[_Waiter] = []
        self.collected = 0
        self.discarded = 0
        self.ending: Ending | None = None
        self._discarded_all = False
        self.returned: deque[Holding] = deque()
        self.changes = 0
        """Moves on with every change of *finished* and of the claims."""

    # -- filling -----------------------------------------------------------------------------------

    def shelve(self, jobs: Sequence[Job], origin: dict[int, Job]) -> None:
        """Make the outcomes of *jobs* final and move them here from *origin*. Waiters are not served yet."""
        self.changes += 1
        claims = self._claims
        for job in jobs:
            task_id = job.task_id
            if job.decision is not None and task_id in origin:
                job.error = job.verdict(job.decision)
                job.data = None
            job.task = None
            if claims and task_id in claims:
                claims[task_id].open()
            if task_id in origin:  # else it was shelved when its thread was left behind
                if claims and task_id in claims:
                    self._claimed_finished += 1
                self.finished[task_id] = job
                del origin[task_id]

    def shelve_cancelled(self, job: Job, origin: dict[int, Job]) -> bool:
        """Cancel a job that has not started, and move it here; False: look again, something came between."""
        task_id, changes = job.task_id, self.changes
        now, verdict = time.monotonic_ns(), job.verdict("cancelled")
        self.wake_all()
        claim = self._claims.get(task_id)
        if claim is not None:
            claim.open()
        if self.changes != changes:
            return False
        job.create_time = job.finish_time = now
        job.error = verdict
        job.decision = "cancelled"
        self._claimed_finished += claim is not None
        self.finished[task_id] = job
        del origin[task_id]
        self.changes += 1
        return True

    def serve(self) -> None:
        """Open the gate of every waiter who can be served now; the first to come takes."""
        if self._waiters:
            available = self._available()
            for waiter in self._waiters:
                if available >= waiter.count:
                    waiter.gate.open()

    def wake_all(self) -> None:
        """Have every waiter look again, once the lock is free."""
        for waiter in self._waiters:
            waiter.gate.open()

    def end(self, ending: Ending) -> None:
        """Wake everybody who is blocked, to raise *ending*. The first one stands."""
        if self.ending is None:
            self.ending = ending
        self.wake_all()
        for claim in self._claims.values():
            claim.open()

    def raise_if_ended(self) -> None:
        if self.ending is not None:
            raise self.ending.error()

    # -- collecting --------------------------------------------------------------------------------

    def take(self, count: int, deadline: float | None, holding: Holding, or_idle: bool = False) -> bool:
        """Move the *count* oldest unclaimed results into *holding*, once there are so many.

        False: there are not, and no unclaimed task is outstanding, where *or_idle* asks for that too. Raises
        TimeoutError at *deadline* (monotonic seconds), and the ending; then nothing was moved.
        """
        waiter, opened = None, False
        while True:
            with self._lock:
                if waiter is not None:
                    self._waiters.remove(waiter)
                    if not opened:
                        self._raise_if_too_few(waiter)
                waiter = self._take_or_wait(count, waiter is not None, holding, or_idle)
            if waiter is None:
                return bool(holding.jobs)
            opened = waiter.gate.wait(_left(deadline))
            exit_hook.stay_if_over()

    def _take_or_wait(self, count: int, blocked: bool, holding: Holding, or_idle: bool) -> _Waiter | None:
        """Take, or take nothing where *or_idle* allows that; else return a waiter to block on."""
        while True:
            if self.returned:
                self.take_back()
            changes = self.changes
            if or_idle and not self._unclaimed():
                if self._discarded_all:
                    self.raise_if_ended()
                return None
            # One who was blocked when the runner ended gets the ending, even if that made results.
            if self._available() < count or (blocked and self.ending is not None):
                break
            if self._move(count, holding, changes):
                return None
        self.raise_if_ended()
        waiter = _Waiter(count, or_idle)
        holding.waiter = waiter
        self._waiters.append(waiter)
        if self.changes != changes:
            waiter.gate.open()  # what changed had no waiter yet to wake
        return waiter

    def _raise_if_too_few(self, waiter: _Waiter) -> None:
        received = self._available()
        if received >= waiter.count:
            return
        if waiter.or_idle:
            raise TimeoutError(f"Timed out waiting for the next of {self._unclaimed()} outstanding tasks.")
        raise TimeoutError(f"Timed out waiting for {waiter.count} results, only received {received}.")

    def _move(self, count: int, holding: Holding, changes: int) -> bool:
        """Take *count* results into *holding*; return False, and take none, when *changes* is outdated."""
        if count == len(self.finished):
            nothing: OrderedDict[int, Job] = OrderedDict()
            jobs = list(self.finished.values())
            if self.changes != changes:
                return False
            holding.jobs = jobs
            self.finished = nothing
            self.collected += count
            self.changes += 1
        else:
            try:
                task_ids = list(islice(filterfalse(self._claims.__contains__, self.finished), count))
                jobs = list(map(self.finished.__getitem__, task_ids))
            except (RuntimeError, KeyError):  # it changed under the iterator
                return False
            removal = map(self.finished.pop, task_ids)
            if self.changes != changes:
                return False
            holding.jobs = jobs
            self.collected += count
            self.changes += 1
            _exhaust(removal)
        return True

    def claim(self, task_id: int, holding: Holding) -> None:
        """Reserve a task, in whatever state, for *holding*: nobody else sees its result.

        Raises UnknownTaskError, and ValueError when another claimed it first.
        """
        with self._lock:
            while True:
                if self.returned:
                    self.take_back()
                changes = self.changes
                finished = task_id in self.finished
                if not finished and not self._is_unfinished(task_id):
                    if self.changes != changes:
                        continue
                    raise UnknownTaskError(
                        f"task_id={task_id} is not outstanding: never accepted, or delivered already"
                    )
                if task_id in self._claims:
                    raise ValueError(f"task_id={task_id} is already waited for by another wait_for_task()")
                self.wake_all()  # an iterator ends when the last unclaimed task is claimed
                gate = Gate()
                if self.changes == changes:
                    break
            self._claims[task_id] = gate
            self._claimed_finished += finished
            holding.claim = task_id
            self.changes += 1

    def take_claimed(self, task_id: int, deadline: float | None, holding: Holding) -> None:
        """Move the result that *holding* has claimed into it, once it is there.

        Raises TimeoutError at *deadline* (monotonic seconds), and the ending; the claim is kept then.
        """
        blocked = False
        while True:
            gate = Gate()
            with self._lock:
                if blocked:
                    self.raise_if_ended()
                if task_id in self.finished:
                    jobs = (self.finished[task_id],)
                    holding.jobs = jobs
                    holding.claim = None
                    del self.finished[task_id]
                    del self._claims[task_id]
                    self._claimed_finished -= 1
                    self.collected += 1
                    self.changes += 1
                    return
                self.raise_if_ended()
                self._claims[task_id] = gate
                if task_id in self.finished:
                    gate.open()  # it came when this gate was not there yet
            opened = gate.wait(_left(deadline))
            exit_hook.stay_if_over()
            if not opened:
                raise TimeoutError(f"Timed out waiting for task_id={task_id}; its result keeps its place.")
            blocked = True

    def settle(self) -> None:
        """Put back what is in ``returned``, each result in its place."""
        with self._lock:
            self.take_back()

    def take_back(self) -> None:
        """Do what ``settle`` does, with the lock held."""
        while self.returned:
            changes = self.changes
            holding = self.returned[0]
            if holding.waiter in self._waiters:
                self._waiters.remove(holding.waiter)
            if not holding.jobs and holding.claim is None:  # a wait that timed out held nothing
                self.returned.popleft()
                continue
            finished = self.finished
            if holding.jobs:  # seldom, and the one thing here that takes as long as there are results
                held = dict(finished)
                for job in holding.jobs:
                    held[self._key_of(job)] = job
                finished = OrderedDict(sorted(held.items(), key=_finish_time))
            count, claim = len(holding.jobs), holding.claim
            claimed = claim in self._claims
            claimed_finished = claimed and claim in finished
            self.wake_all()
            if self.changes != changes:
                continue
            if count:
                self.finished = finished
                self.collected -= count
                holding.jobs = ()
            if claimed and claim is not None:
                del self._claims[claim]
                self._claimed_finished -= claimed_finished
                holding.claim = None
            self.changes += 1
            self.returned.popleft()

    def _key_of(self, job: Job) -> int:
        """Return what to put *job* back by: its id, or no id at all where another task has that by now."""
        task_id = job.task_id
        in_use = self.finished.get(task_id, job) is not job or self._is_unfinished(task_id)
        return -id(job) if in_use else task_id

    def discard_all(self) -> int:
        """Drop what was never collected; return how many results that were."""
        with self._lock:
            if self.returned:
                self.take_back()
            count = len(self.finished)
            nothing: OrderedDict[int, Job] = OrderedDict()
            self._discarded_all = True
            self.discarded += count
            self.finished = nothing
            self._claimed_finished = 0
            self._claims = {}
            self.changes += 1
            return count

    def _available(self) -> int:
        return len(self.finished) - self._claimed_finished

    def _unclaimed(self) -> int:
        return self._unfinished() + len(self.finished) - len(self._claims)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _finish_time(item: tuple[int, Job]) -> int:
    return item[1].finish_time
