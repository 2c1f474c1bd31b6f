"""Outcomes that nobody has yet, and who waits for them. No I/O."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from areal_core._executor.budget import Budget
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout, State
from areal_core.errors import UnknownTaskError

_Pool = OrderedDict[int, Rollout]


class Delivery:
    """Keeps finished rollouts until a caller gets them, and gives a caller all it waits for at once.

    *holds* says whether a batch has to wait for stragglers, given what would be left without it.
    """

    def __init__(self, budget: Budget, holds: Callable[[Request, list[Rollout]], bool]) -> None:
        self._budget = budget
        self._holds = holds
        self.requests: list[Request] = []
        self._open = _Pool()  # training, for whoever waits
        self._eval = _Pool()  # the same of evaluation
        self._batch = _Pool()  # trajectories, and attempts that count as such, for the next batch
        self._unwanted = _Pool()  # submitted for batches, and brought nothing
        self._claimed = _Pool()  # to be delivered to one caller only

    def keep(self, rollout: Rollout) -> None:
        """Keep a finished rollout until somebody gets it."""
        self._pool_of(rollout)[rollout.task_id] = rollout
        if rollout.claim is not None:
            rollout.claim.there += 1

    def drop(self, rollout: Rollout) -> None:
        """Take a finished rollout out."""
        del self._pool_of(rollout)[rollout.task_id]
        if rollout.claim is not None:
            rollout.claim.there -= 1

    def finished(self) -> Iterable[Rollout]:
        """Return all that is finished and not delivered."""
        for pool in (self._open, self._eval, self._batch, self._unwanted, self._claimed):
            yield from pool.values()

    @property
    def for_batches(self) -> int:
        """How many wait for the next batch, and come out of nothing else."""
        return len(self._batch)

    def waiting_attempts(self) -> list[Rollout]:
        """Return those that hold a unit though they brought nothing: a dynamic batch counts them."""
        return [one for one in self._batch.values() if not one.is_accepted]

    def claim(self, request: Request, rollouts: Mapping[int, Rollout]) -> BaseException | None:
        """Let what *request* claims of *rollouts* be delivered to it alone.

        Return why that cannot be, in which case it has claimed some of it.
        """
        for task_id in request.claims:
            rollout = rollouts.get(task_id)
            if rollout is None or rollout.lane is Lane.BATCH:
                return UnknownTaskError(
                    f"no rollout with task_id={task_id} is outstanding: it was never submitted, or its "
                    "outcome was delivered already"
                )
            if rollout.claim is not None:
                return ValueError(f"task_id={task_id} is claimed by another caller, who waits for it already")
            request.is_eval = rollout.plan.is_eval
            self._claim(request, rollout)
        return None

    def _claim(self, request: Request, rollout: Rollout) -> None:
        if rollout.state is State.FINISHED:
            self.drop(rollout)
        rollout.claim = request.claim
        request.claim.rollouts.append(rollout)
        if rollout.state is State.FINISHED:
            self.keep(rollout)

    def serve(self, request: Request) -> list[Rollout] | None:
        """Give *request* what it waits for, and what nobody wants; None if not all of that is there."""
        chosen = self._choose(request)
        if chosen is None:
            return None
        given = [*chosen, *self._unwanted.values()] if request.want is Want.BATCH else chosen
        for rollout in given:
            self.drop(rollout)
            rollout.state = State.COLLECTED
            rollout.claim = None
        request.claim.rollouts.clear()  # it has them now, and what refers to each other is not freed at once
        request.charged = self._spend(chosen)
        request.is_in_hand = True
        self._budget.in_hand += len(request.charged)
        request.rollouts = chosen
        request.version, request.changes = self._budget.version, self._budget.changes
        return given

    def received(self, request: Request) -> None:
        """Take note that the caller of *request* has got what it was given."""
        if self._leave_hand(request) and request.changes != self._budget.changes:
            self._budget.consumed -= len(request.charged)

    def take_back(self, request: Request) -> list[Rollout]:
        """Put back what *request* was given, release what it has claimed, and return the former."""
        if request in self.requests:
            self.requests.remove(request)
        given, request.rollouts = list(request.rollouts), ()
        self._unspend(request)
        for rollout in request.claim.rollouts:
            if rollout.state is State.FINISHED:
                self.drop(rollout)
                rollout.claim = None
                self.keep(rollout)
            rollout.claim = None
        request.claim.rollouts.clear()
        for rollout in reversed(given):
            rollout.state = State.FINISHED
            self.keep(rollout)
            self._pool_of(rollout).move_to_end(rollout.task_id, last=False)  # it keeps its place
        return given

    def _choose(self, request: Request) -> list[Rollout] | None:
        if request.want is Want.CLAIMED:
            claim = request.claim
            request.there = claim.there
            return list(claim.rollouts) if claim.there == len(claim.rollouts) else None
        if request.want is Want.ENDED:
            pool = self._eval if request.is_eval else self._open
            request.there = len(pool)
            return list(islice(pool.values(), request.count)) if len(pool) >= request.count else None
        return self._choose_batch(request)

    def _choose_batch(self, request: Request) -> list[Rollout] | None:
        request.there = len(self._batch)
        while len(self._batch) >= request.count:
            chosen = heapq.nsmallest(request.count, self._batch.values(), key=_age)
            if any(one.is_accepted for one in chosen):
                taken = set(chosen)
                rest = [one for one in self._batch.values() if one not in taken]
                return None if self._holds(request, rest) else chosen
            for attempt in chosen:  # or a batch would be empty, or never come
                self.free(attempt)
            request.there = len(self._batch)
        return None

    def free(self, attempt: Rollout) -> None:
        """Count one that brought nothing as an attempt no longer."""
        self.drop(attempt)
        attempt.is_charged = False
        self._budget.waiting -= 1
        self.keep(attempt)

    def _pool_of(self, rollout: Rollout) -> _Pool:
        if rollout.claim is not None:
            return self._claimed
        if rollout.lane is Lane.BATCH:
            return self._batch if rollout.is_charged else self._unwanted
        return self._eval if rollout.plan.is_eval else self._open

    def _spend(self, rollouts: Sequence[Rollout]) -> frozenset[Rollout]:
        """Count the units of rollouts that are delivered; return those that cost one."""
        charged = frozenset(one for one in rollouts if one.is_charged or _costs_on_delivery(one))
        for one in charged:
            self._budget.waiting -= one.is_charged
            one.is_charged = False
        self._budget.consumed += len(charged)
        return charged

    def _leave_hand(self, request: Request) -> bool:
        was_in_hand, request.is_in_hand = request.is_in_hand, False
        if was_in_hand:
            self._budget.in_hand -= len(request.charged)
        return was_in_hand

    def _unspend(self, request: Request) -> None:
        if self._leave_hand(request) or request.changes == self._budget.changes:
            self._budget.consumed -= len(request.charged)
        for one in request.charged:
            if not _costs_on_delivery(one):
                one.is_charged = True
                self._budget.waiting += 1
        request.charged = frozenset()


def _age(rollout: Rollout) -> tuple[int, int]:
    return rollout.age


def _costs_on_delivery(rollout: Rollout) -> bool:
    """Return whether it costs a unit only when it is delivered: a row jumped the queue."""
    return rollout.lane is Lane.ROW and rollout.is_accepted and not rollout.plan.is_eval
