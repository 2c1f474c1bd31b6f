"""Which worker plays what, and what becomes of it when a worker goes. One thread, no I/O, any clock.

start -> backlog -> a worker with room -> out -> ended
            ^                              |
            '---- handed back, drained ----+---- lost with its worker -> the core runs it again
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet

from areal_core._distributed.backlog import Backlog
from areal_core._distributed.leases import Ended, LeaseRules, Link, Order, Parcel, Report, WorkerState
from areal_core._distributed.noting import count_ends, enter, fill_in, never_begun, take_stage
from areal_core._distributed.pace import Pace, pace_of
from areal_core._distributed.quarantine import begun_at, excused
from areal_core._executor.port import Clock
from areal_core._executor.rollout import Episode, Rollout, State
from areal_core._record import FAR, WAITING_FOR_ROOM

_LOOKS_PER_LEASE = 4


class Dispatcher:
    """Lends episodes to workers.

    *on_ended* is given episodes whose fields say how they ended; *on_lost* the rollouts whose worker is gone,
    those of them for which that does not count, and why; *on_gone* the number of a worker that is no
    more, and why, None where it was to go. None of them may call back before the method that calls it has
    returned.
    """

    def __init__(
        self,
        rules: LeaseRules,
        link: Link,
        clock: Clock,
        on_ended: Callable[[Sequence[Episode]], None],
        on_lost: Callable[[Sequence[Rollout], AbstractSet[Rollout], str], None],
        on_gone: Callable[[int, str | None], None],
    ) -> None:
        self._rules = rules
        self._link = link
        self._clock = clock
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._on_gone = on_gone
        self.workers: dict[int, WorkerState] = {}
        self._backlog = Backlog(rules, self.workers)
        self._resting: dict[int, Parcel] = {}  # of groups, of which nothing runs at the moment
        self._to_send: dict[int, Parcel] = {}  # that have a worker, and more for it
        self._to_cancel: dict[int, list[tuple[int, int]]] = {}
        self._numbers = itertools.count(1)
        self._turns = itertools.count()
        self.refused = 0
        """How many ends came of leases that had passed to others."""
        self.dead = 0
        """How many workers died."""
        self.lost = 0
        """How many rollouts were lost with their workers."""

    @property
    def waiting(self) -> int:
        """How many rollouts wait for room at a worker."""
        return len(self._backlog)

    @property
    def pace(self) -> Pace:
        """How often each worker is heard of now."""
        return pace_of(len(self.workers), self._rules.lease_s)

    # -- what the core wants -----------------------------------------------------------------------

    def start(self, episodes: Iterable[Episode]) -> None:
        """Have *episodes* played."""
        for episode in episodes:
            parcel: Parcel | None = episode.rollout.episodes[0].job
            if parcel is None:
                parcel = Parcel(next(self._numbers), episode.rollout)
                self._backlog.add(parcel)
            if parcel.worker is None:
                enter(parcel, episode, WAITING_FOR_ROOM)
            else:
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
            self._see_rest(parcel)
            self._on_ended([never_begun(episode)])
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
        for parcel, worker in self._backlog.shares():
            self._hand(parcel, worker, orders)
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
        worker = WorkerState(number, now, counted_at=now, turn=next(self._turns))
        self.workers[number] = worker
        self._look_after(worker)

    def reported(self, number: int, report: Report) -> None:
        """Take what a worker brings."""
        worker = self.workers.get(number)
        if worker is None:  # it was taken for dead, and its leases are others' now
            self.refused += len(report.ended)
            return
        now = self._clock.time()
        worker.seen_at, worker.looks, worker.stalled_s = now, 0, report.stalled_s
        for parcel, place, stage in report.stages:
            self._note_stage(worker, parcel, place, stage, now)
        count_ends(worker, len(report.ended), now)
        if report.ended:
            self._on_ended(self._settled(worker, report.ended))
        if report.returned:
            self._take_back(worker, report.returned)
        self._see_hang(worker)
        self._see_drained(worker)

    def not_sent(self, number: int, ended: Sequence[Ended]) -> None:
        """Take the ends of what could not be sent to a worker: no sign of life, for it did not bring them."""
        worker = self.workers.get(number)
        if worker is not None:
            self._on_ended(self._settled(worker, ended))
            self._see_drained(worker)

    def died(self, number: int, why: str) -> None:
        """Have what a worker had run elsewhere: it is gone."""
        worker = self.workers.pop(number, None)
        if worker is None:
            return
        begun, lost = begun_at(worker, self._rules.slots), []
        for parcel in worker.parcels.values():
            self._resting.pop(parcel.number, None)
            parcel.worker = None
            if parcel.is_current and parcel.rollout.state is State.RUNNING:
                lost.append(parcel.rollout)
        self.dead += 1
        self.lost += len(lost)
        self._on_gone(number, why)
        if lost:
            self._on_lost(lost, set(lost) - begun | excused(begun, self._rules), why)

    def drain(self, number: int) -> bool:
        """Have a worker finish what it has begun, give back the rest, and go; return whether it is there."""
        worker = self.workers.get(number)
        if worker is None:
            return False
        if not worker.is_draining:
            worker.is_draining = True
            self._link.take_back(number)
            self._see_drained(worker)
        return True

    # -- lending -----------------------------------------------------------------------------------

    def _hand(self, parcel: Parcel, worker: WorkerState, orders: dict[int, list[Order]]) -> None:
        self._backlog.remove(parcel)
        parcel.worker = worker
        worker.parcels[parcel.number] = parcel
        if parcel.rollout.losses:
            worker.suspects[parcel.number] = parcel.rollout.losses
        self._lend(parcel, worker, orders, is_first=True)
        worker.turn = next(self._turns)

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
            worker.out[episode] = False
            episode.record.worker = worker.number
            enter(parcel, episode, FAR)
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
            del worker.out[episode]
            fill_in(episode, one)
            episodes.append(episode)
            if parcel.rollout.plan.group_size == 1:
                _forget(parcel)
                episode.job = None
            else:
                self._see_rest(parcel)
        return episodes

    def _note_stage(
        self, worker: WorkerState, number: int, place: int, stage: tuple[object, ...], now: float
    ) -> None:
        parcel = worker.parcels.get(number)
        episode = None if parcel is None else parcel.out.get(place)
        if episode is not None:
            worker.out[episode] = True
            take_stage(episode.record, stage, now)

    def _take_back(self, worker: WorkerState, returned: Sequence[tuple[int, int]]) -> None:
        back: dict[int, Parcel] = {}
        never: list[Episode] = []
        for number, place in returned:
            parcel = worker.parcels.get(number)
            episode = None if parcel is None else parcel.out.pop(place, None)
            if parcel is None or episode is None:
                continue
            del worker.out[episode]
            back[number] = parcel
            if episode.told_to_end:  # while it was on its way back, so that nobody there can obey
                never.append(never_begun(episode))
            else:
                parcel.unsent.append(episode)
        for parcel in sorted(back.values(), key=_age, reverse=True):
            parcel.unsent.sort(key=_place)
            if len(parcel.unsent) == len(parcel.rollout.episodes):  # nothing of it has begun
                self._put_back(parcel, worker)
            elif parcel.unsent:  # its group goes on here
                self._to_send[parcel.number] = parcel
            else:
                self._see_rest(parcel)
        if never:
            self._on_ended(never)

    def _put_back(self, parcel: Parcel, worker: WorkerState) -> None:
        """Let a parcel wait again, before those that were not lent so far, under another number."""
        self._link.forget(worker.number, [parcel.number])
        _forget(parcel)
        parcel.worker, parcel.number = None, next(self._numbers)
        self._backlog.add(parcel, is_back=True)
        for episode in parcel.unsent:
            episode.record.worker = None
            enter(parcel, episode, WAITING_FOR_ROOM)

    def _see_rest(self, parcel: Parcel) -> None:
        """Note a parcel of which nothing is lent, or to be lent. Whether it goes on, the core knows."""
        if parcel.out or parcel.unsent:
            return
        if parcel.worker is None:
            self._backlog.remove(parcel)
        else:
            self._resting[parcel.number] = parcel

    def _forget_what_is_over(self) -> None:
        """Forget what rests and has ended: it does not go on, with members or a judge."""
        over: dict[int, list[int]] = {}
        for parcel in list(self._resting.values()):
            if parcel.is_current and parcel.rollout.state is State.RUNNING:
                continue
            del self._resting[parcel.number]
            _forget(parcel)
            if parcel.worker is not None:
                over.setdefault(parcel.worker.number, []).append(parcel.number)
        for number, parcels in over.items():
            self._link.forget(number, parcels)
            worker = self.workers.get(number)
            if worker is not None:
                self._see_drained(worker)

    # -- how workers are ---------------------------------------------------------------------------

    def _see_hang(self, worker: WorkerState) -> None:
        """Lend nothing to one whose loop, or engine, does not go on; take back what it has not begun.

        So no more is lost if it has to be killed; it still brings what has ended. The seconds are its own:
        how busy this process is does not matter.
        """
        stalled_s, hang_s = worker.stalled_s, self._rules.hang_s
        if worker.is_hung and stalled_s > hang_s + self._rules.drain_s:
            what = "its loop, a call of its engine, or reading what it was given"
            self._kill(worker, f"{what} did not go on for {stalled_s:.0f} s")
        elif worker.is_hung != (stalled_s > hang_s):
            worker.is_hung = not worker.is_hung
            if worker.is_hung:
                self._link.take_back(worker.number)

    def _see_drained(self, worker: WorkerState) -> None:
        if worker.is_draining and not worker.parcels and worker.number in self.workers:
            del self.workers[worker.number]
            self._link.retire(worker.number)
            self._on_gone(worker.number, None)

    def _look_after(self, worker: WorkerState) -> None:
        """Take one for dead that gives no sign of life from look to look.

        Looks are counted, not seconds: where this process stood still, a sign of life may wait to be read.
        """
        if self.workers.get(worker.number) is not worker:
            return
        if worker.looks >= _LOOKS_PER_LEASE:
            silent_s = self._clock.time() - worker.seen_at
            self._kill(worker, f"it gave no sign of life for {silent_s:.0f} s")
        else:
            worker.looks += 1
            self._clock.call_later(self._rules.lease_s / _LOOKS_PER_LEASE, lambda: self._look_after(worker))

    def _kill(self, worker: WorkerState, why: str) -> None:
        self._link.kill(worker.number, why)
        self.died(worker.number, why)


def _forget(parcel: Parcel) -> None:
    if parcel.worker is not None:
        parcel.worker.parcels.pop(parcel.number, None)
        parcel.worker.suspects.pop(parcel.number, None)


def _age(parcel: Parcel) -> int:
    return parcel.rollout.start_order


def _place(episode: Episode) -> int:
    return episode.sample_idx
