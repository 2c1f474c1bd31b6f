"""Which worker plays what, and what becomes of it when a worker goes. One thread, no I/O, any clock.

start -> backlog -> a worker with room -> out -> ended
            ^                              |
            '---- handed back, drained ----+---- lost with its worker -> the core runs it again
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from areal_core._distributed.leases import Ended, LeaseRules, Link, Order, Parcel, Report, WorkerState
from areal_core._executor.port import Clock
from areal_core._executor.rollout import Episode, Rollout, State
from areal_core._record import FAR, WAITING_FOR_ROOM, EpisodeRecord

_LOOKS_PER_LEASE = 4
_RATE_OVER_S = 1.0  # the rate of ends is an average over about so long


class Dispatcher:
    """Lends episodes to workers.

    *on_ended* is given episodes whose fields say how they ended; *on_lost* the rollouts whose worker is gone,
    and why; *on_gone* the number of a worker that is no more, and why, None where it was to go.
    """

    def __init__(
        self,
        rules: LeaseRules,
        link: Link,
        clock: Clock,
        on_ended: Callable[[Sequence[Episode]], None],
        on_lost: Callable[[Sequence[Rollout], str], None],
        on_gone: Callable[[int, str | None], None],
    ) -> None:
        self._rules = rules
        self._link = link
        self._clock = clock
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._on_gone = on_gone
        self.workers: dict[int, WorkerState] = {}
        self._backlog: deque[Parcel] = deque()
        self._parcels: dict[int, Parcel] = {}  # those that a worker has
        self._resting: dict[int, Parcel] = {}  # of groups, of which nothing runs at the moment
        self._to_send: dict[int, Parcel] = {}  # that have a worker, and more for it
        self._to_cancel: dict[int, list[tuple[int, int]]] = {}
        self._roomy: dict[int, WorkerState] = {}  # in the order in which it is their turn
        self._parcels_so_far = 0
        self.refused = 0
        """How many ends came of leases that had passed to others."""
        self.lost = 0
        """How many rollouts were lost with their workers."""

    @property
    def waiting(self) -> int:
        """How many rollouts wait for room at a worker."""
        return len(self._backlog)

    # -- what the core wants -----------------------------------------------------------------------

    def start(self, episodes: Iterable[Episode]) -> None:
        """Have *episodes* played."""
        for episode in episodes:
            rollout = episode.rollout
            parcel: Parcel | None = rollout.episodes[0].job
            if parcel is None:
                self._parcels_so_far += 1
                parcel = Parcel(self._parcels_so_far, rollout)
                self._backlog.append(parcel)
                episode.record.enter(WAITING_FOR_ROOM)
            elif parcel.worker is not None:
                self._to_send[parcel.number] = parcel
            episode.job = parcel
            parcel.unsent.append(episode)

    def cancel(self, episode: Episode) -> None:
        """Tell *episode* to end."""
        parcel: Parcel | None = episode.job
        if parcel is None:
            return
        if episode in parcel.unsent:
            parcel.unsent.remove(episode)
            episode.error = asyncio.CancelledError(
                f"rollout {episode.rollout.task_id} was cancelled before it started"
            )
            self._on_ended([episode])
        elif parcel.worker is not None:
            cancels = self._to_cancel.setdefault(parcel.worker.number, [])
            cancels.append((parcel.number, episode.sample_idx))

    def go_on(self) -> None:
        """Send what is to be sent: once after any number of events."""
        self._forget_what_is_over()
        orders: dict[int, list[Order]] = {}
        for parcel in self._to_send.values():
            if parcel.worker is not None and parcel.unsent:
                self._lend(parcel, parcel.worker, orders)
        self._to_send.clear()
        self._share_backlog(orders)
        for number, theirs in orders.items():
            self._link.give(number, theirs)
        cancels, self._to_cancel = self._to_cancel, {}
        for number, episodes in cancels.items():
            if number in self.workers:
                self._link.cancel(number, episodes)

    # -- what workers do ---------------------------------------------------------------------------

    def joined(self, number: int) -> None:
        """Take a new worker in."""
        now = self._clock.time()
        worker = WorkerState(number, now, counted_at=now)
        self.workers[number] = self._roomy[number] = worker
        self._look_after(worker)

    def reported(self, number: int, report: Report) -> None:
        """Take what a worker brings."""
        worker = self.workers.get(number)
        if worker is None:  # it was taken for dead, and its leases are others' now
            self.refused += len(report.ended)
            return
        now = self._clock.time()
        worker.seen_at, worker.stalled_s = now, report.stalled_s
        for parcel, place, stage in report.stages:
            self._note_stage(parcel, place, stage, now)
        if report.ended:
            self._count(worker, len(report.ended), now)
            self._on_ended(self._settled(worker, report.ended))
        if report.returned:
            self._take_back(worker, report.returned)
        self._see_hang(worker)
        self._see_room(worker)
        self._see_drained(worker)

    def died(self, number: int, why: str) -> None:
        """Have what a worker had run elsewhere: it is gone."""
        worker = self.workers.pop(number, None)
        if worker is None:
            return
        self._roomy.pop(number, None)
        lost = []
        for parcel in worker.parcels.values():
            self._parcels.pop(parcel.number, None)
            self._resting.pop(parcel.number, None)
            self._to_send.pop(parcel.number, None)
            parcel.worker = None
            if parcel.is_current and parcel.rollout.state is State.RUNNING:
                lost.append(parcel.rollout)
        self.lost += len(lost)
        self._on_gone(number, why)
        if lost:
            self._on_lost(lost, why)

    def drain(self, number: int) -> bool:
        """Have a worker finish what it has begun, give back the rest, and go; return whether it is there."""
        worker = self.workers.get(number)
        if worker is None:
            return False
        if not worker.is_draining:
            worker.is_draining = True
            self._roomy.pop(number, None)
            self._link.take_back(number)
            self._see_drained(worker)
        return True

    # -- lending -----------------------------------------------------------------------------------

    def _share_backlog(self, orders: dict[int, list[Order]]) -> None:
        """Give everybody as much, first what they can play at once, then what they may hold."""
        for may_hold in (False, True):
            while self._backlog:
                rooms = [(worker, self._room(worker, may_hold)) for worker in self._roomy.values()]
                rooms = [(worker, room) for worker, room in rooms if room > 0]
                if not rooms:
                    break
                share = max(1, len(self._backlog) // len(rooms))
                for worker, room in rooms:
                    self._fill(worker, min(share, room), orders)

    def _fill(self, worker: WorkerState, most: int, orders: dict[int, list[Order]]) -> None:
        upto = worker.load + most
        while self._backlog and worker.load < upto:
            parcel = self._backlog.popleft()
            if parcel.unsent:  # else it was cancelled
                parcel.worker = worker
                worker.parcels[parcel.number] = self._parcels[parcel.number] = parcel
                self._lend(parcel, worker, orders, is_first=True)
        # Whoever was served has its next turn after the others.
        if self._roomy.pop(worker.number, None) is not None:
            self._roomy[worker.number] = worker

    def _room(self, worker: WorkerState, may_hold: bool) -> int:
        ahead = 0
        if may_hold:  # what ends there while an exchange is under way: it never runs dry, and hoards nothing
            ahead = min(self._rules.most_ahead, math.ceil(worker.rate * self._rules.exchange_s))
        return self._rules.slots + ahead - worker.load

    def _lend(
        self,
        parcel: Parcel,
        worker: WorkerState,
        orders: dict[int, list[Order]],
        *,
        is_first: bool = False,
    ) -> None:
        episodes, parcel.unsent = parcel.unsent, []
        for episode in episodes:
            parcel.out[episode.sample_idx] = episode
            episode.record.worker = worker.number
            episode.record.stage = FAR
        worker.load += len(episodes)
        self._resting.pop(parcel.number, None)
        orders.setdefault(worker.number, []).append(Order(parcel, is_first, episodes))

    # -- what comes back ---------------------------------------------------------------------------

    def _settled(self, worker: WorkerState, ended: Sequence[Ended]) -> list[Episode]:
        episodes = []
        for one in ended:
            parcel = worker.parcels.get(one.parcel)
            episode = None if parcel is None else parcel.out.pop(one.sample_idx, None)
            if parcel is None or episode is None:
                self.refused += 1
                continue
            worker.load -= 1
            _fill_in(episode, one)
            episodes.append(episode)
            if parcel.rollout.work.group_size == 1:
                self._forget(parcel)
                episode.job = None
            elif not parcel.out and not parcel.unsent:
                self._resting[parcel.number] = parcel
        return episodes

    def _take_back(self, worker: WorkerState, returned: Sequence[tuple[int, int]]) -> None:
        back: dict[int, Parcel] = {}
        for number, place in returned:
            parcel = worker.parcels.get(number)
            episode = None if parcel is None else parcel.out.pop(place, None)
            if parcel is None or episode is None:
                continue
            worker.load -= 1
            parcel.unsent.append(episode)
            back[number] = parcel
        for parcel in back.values():
            if len(parcel.unsent) == len(parcel.rollout.episodes):  # nothing of it has begun
                self._forget(parcel)
                self._link.forget(worker.number, [parcel.number])
                parcel.worker = None
                self._backlog.appendleft(parcel)
            else:  # its group goes on here
                self._to_send[parcel.number] = parcel

    def _forget(self, parcel: Parcel) -> None:
        self._parcels.pop(parcel.number, None)
        if parcel.worker is not None:
            parcel.worker.parcels.pop(parcel.number, None)

    def _forget_what_is_over(self) -> None:
        """Forget groups that have ended. Whether one goes on, with members or its judge, the core knows."""
        over: dict[int, list[int]] = {}
        for parcel in list(self._resting.values()):
            if parcel.is_current and parcel.rollout.state is State.RUNNING:
                continue
            del self._resting[parcel.number]
            self._forget(parcel)
            if parcel.worker is not None:
                over.setdefault(parcel.worker.number, []).append(parcel.number)
        for number, parcels in over.items():
            self._link.forget(number, parcels)
            worker = self.workers.get(number)
            if worker is not None:
                self._see_drained(worker)

    def _note_stage(self, number: int, place: int, stage: tuple[object, ...], now: float) -> None:
        parcel = self._parcels.get(number)
        episode = None if parcel is None else parcel.out.get(place)
        if episode is not None:
            _take_stage(episode.record, stage, now)

    # -- how workers are ---------------------------------------------------------------------------

    def _count(self, worker: WorkerState, ended: int, now: float) -> None:
        worker.ended += ended
        passed_s = now - worker.counted_at
        if passed_s > 0:
            weight = 1.0 - math.exp(-passed_s / _RATE_OVER_S)
            worker.rate += weight * (ended / passed_s - worker.rate)
            worker.counted_at = now

    def _see_room(self, worker: WorkerState) -> None:
        if not worker.is_draining and worker.number in self.workers:
            self._roomy.setdefault(worker.number, worker)

    def _see_hang(self, worker: WorkerState) -> None:
        """Drain one whose loop does not turn: it still brings what has ended, and no more is lost with it."""
        if worker.stalled_s < self._rules.hang_s or worker.is_hung:
            return
        worker.is_hung = True
        self.drain(worker.number)
        self._clock.call_later(self._rules.drain_s, lambda: self._kill_if_hung(worker))

    def _kill_if_hung(self, worker: WorkerState) -> None:
        if self.workers.get(worker.number) is not worker:
            return
        if worker.stalled_s >= self._rules.hang_s:
            self._kill(worker, f"its loop did not turn for {worker.stalled_s:.0f} s")
        else:  # it turns again, but has given back what it had: somebody else will take its place
            worker.is_hung = False

    def _see_drained(self, worker: WorkerState) -> None:
        if worker.is_draining and not worker.parcels and worker.number in self.workers:
            del self.workers[worker.number]
            self._link.retire(worker.number)
            self._on_gone(worker.number, None)

    def _look_after(self, worker: WorkerState) -> None:
        """Take one for dead that gives no sign of life."""
        if self.workers.get(worker.number) is not worker:
            return
        silent_s = self._clock.time() - worker.seen_at
        if silent_s > self._rules.lease_s:
            self._kill(worker, f"it gave no sign of life for {silent_s:.0f} s")
        else:
            self._clock.call_later(self._rules.lease_s / _LOOKS_PER_LEASE, lambda: self._look_after(worker))

    def _kill(self, worker: WorkerState, why: str) -> None:
        self._link.kill(worker.number, why)
        self.died(worker.number, why)


def _fill_in(episode: Episode, one: Ended) -> None:
    episode.verdict, episode.error, episode.timed_out = one.verdict, one.error, one.timed_out
    episode.seconds = one.seconds
    record = episode.record
    record.segments, record.newest_version, record.generate_s, record.reward_s, record.accept_s = one.figures
    record.enter("ended")


def _take_stage(record: EpisodeRecord, stage: tuple[object, ...], now: float) -> None:
    name, server, age_s, segments, newest = stage
    record.stage, record.server, record.segments, record.newest_version = name, server, segments, newest  # type: ignore[assignment]
    record.since = now - age_s  # type: ignore[operator]
