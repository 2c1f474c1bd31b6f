"""What waits for a worker, and which one it gets."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from areal_core._distributed.leases import LeaseRules, Parcel, WorkerState
from areal_core._distributed.pace import pace_of
from areal_core._distributed.quarantine import is_to_be_alone, may_join


class Backlog:
    """Parcels that nobody has, each kind in its order. What is put back comes first."""

    def __init__(self, rules: LeaseRules, workers: Mapping[int, WorkerState]) -> None:
        self._rules = rules
        self._workers = workers
        self._fresh: OrderedDict[int, Parcel] = OrderedDict()  # those that were never lost, by number
        self._suspects: OrderedDict[int, Parcel] = OrderedDict()
        self._alone: OrderedDict[int, Parcel] = OrderedDict()  # those that are to be alone at their worker
        self._kept: dict[int, Parcel] = {}  # for which of them a worker is kept, by worker

    def __len__(self) -> int:
        return len(self._fresh) + len(self._suspects) + len(self._alone)

    def __contains__(self, parcel: Parcel) -> bool:
        return self._line_of(parcel).get(parcel.number) is parcel

    def __iter__(self) -> Iterator[Parcel]:
        return itertools.chain(self._alone.values(), self._suspects.values(), self._fresh.values())

    def add(self, parcel: Parcel, *, is_back: bool = False) -> None:
        """Let *parcel* wait."""
        line = self._line_of(parcel)
        line[parcel.number] = parcel
        if is_back:
            line.move_to_end(parcel.number, last=False)

    def remove(self, parcel: Parcel) -> None:
        """Let *parcel* wait no more, if it does."""
        self._line_of(parcel).pop(parcel.number, None)

    def _line_of(self, parcel: Parcel) -> OrderedDict[int, Parcel]:
        if not parcel.rollout.losses:
            return self._fresh
        return self._alone if is_to_be_alone(parcel.rollout, self._rules) else self._suspects

    # -- shares ------------------------------------------------------------------------------------

    def shares(self) -> Iterator[tuple[Parcel, WorkerState]]:
        """Yield what is to be lent to whom; it has to be before the next is asked for.

        What was lost before comes first, as far as it may be together.
        """
        if self._kept:
            self._free_kept()
        if self._alone:
            yield from self._shares_alone()
        if self._suspects:
            yield from self._shares_of_suspects()
        if self._fresh:
            yield from self._fresh_shares()

    def _free_kept(self) -> None:
        for number, parcel in list(self._kept.items()):
            worker = self._workers.get(number)
            is_there = worker is not None and parcel.number in worker.parcels
            may_come = worker is not None and parcel in self and self._most_for(worker) > 0
            if not (is_there or may_come):
                del self._kept[number]

    def _shares_alone(self) -> Iterator[tuple[Parcel, WorkerState]]:
        """Keep workers for these, half of them at most, and lend when they have nothing left."""
        kept = {id(parcel): self._workers[number] for number, parcel in self._kept.items()}
        for parcel in list(self._alone.values()):
            worker = kept.get(id(parcel))
            if worker is None:
                able = self._able()
                if not able or len(self._kept) >= max(1, len(self._workers) // 2):
                    return
                worker = min(able, key=_load)
                self._kept[worker.number] = parcel
            if not worker.load:
                yield parcel, worker

    def _shares_of_suspects(self) -> Iterator[tuple[Parcel, WorkerState]]:
        """Go by their order, so that none waits for ever, and to where the fewest are."""
        for parcel in list(self._suspects.values()):
            hosts = [one for one in self._able() if may_join(parcel, one, self._rules)]
            if not hosts:
                return
            yield parcel, min(hosts, key=lambda one: (len(one.suspects), *_load(one)))

    def _fresh_shares(self) -> Iterator[tuple[Parcel, WorkerState]]:
        """Go to whoever has the least: so what can be played at once comes before what is only held."""
        rooms = [(*_load(worker), worker, self._most_for(worker)) for worker in self._able()]
        heapq.heapify(rooms)
        while self._fresh and rooms:
            _, _, worker, most = rooms[0]
            yield next(iter(self._fresh.values())), worker
            if worker.load < most:
                heapq.heapreplace(rooms, (*_load(worker), worker, most))
            else:
                heapq.heappop(rooms)

    def _able(self) -> list[WorkerState]:
        """Return those that have room, and are kept for nobody."""
        return [
            worker
            for worker in self._workers.values()
            if worker.number not in self._kept and worker.load < self._most_for(worker)
        ]

    def _most_for(self, worker: WorkerState) -> int:
        if worker.is_draining or worker.is_hung:
            return 0
        # What ends there until the driver has heard of it and sent more: it does not run dry.
        wait_s = pace_of(len(self._workers), self._rules.lease_s).linger_s + self._rules.exchange_s
        ahead = math.ceil(worker.rate * wait_s)
        return self._rules.slots + min(self._rules.most_ahead, ahead)


def _load(worker: WorkerState) -> tuple[int, int]:
    return worker.load, worker.turn
