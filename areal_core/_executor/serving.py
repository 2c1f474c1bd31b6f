"""The part of the core that callers ask: who waits for what, and gets it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

from areal_core._executor.books import BothBooks
from areal_core._executor.budget import Budget
from areal_core._executor.delivery import Delivery
from areal_core._executor.hold import Hold
from areal_core._executor.patience import Patience
from areal_core._executor.port import Witness
from areal_core._executor.report import Tally, Trained
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Lane, Rollout
from areal_core._executor.scheduler import Scheduler
from areal_core._executor.standstill import Standstill


class Serving:
    """Answers requests, and takes back what did not arrive."""

    books: BothBooks
    tally: Tally
    budget: Budget
    scheduler: Scheduler
    delivery: Delivery
    _witness: Witness
    _hold: Hold
    _standstill: Standstill
    _patience: Patience
    _rollouts: dict[int, Rollout]
    _ending: Callable[[], BaseException] | None
    _unseen: list[Request]
    _is_dynamic: bool

    @abstractmethod
    def submit(self, rollouts: Iterable[Rollout]) -> None:
        """Take new rollouts."""

    @abstractmethod
    def _expire(self, finished: Iterable[Rollout]) -> None:
        """Free what finished rollouts that are too old take up."""

    # -- events ------------------------------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """Give a caller what he waits for as soon as it is there."""
        if request.is_withdrawn:
            return
        if request.want is Want.BATCH:
            self._set_dynamic(request.dynamic)
        request.error = self.delivery.claim(request, self._rollouts)
        if request.error is None:
            self.delivery.requests.append(request)
        else:
            self.delivery.take_back(request)
            request.gate.open()
        self._unseen.append(request)

    def ask_again(self, earlier: Request, request: Request) -> None:
        """Take back what *earlier* was given and give *request* what there is now; claims stay claimed."""
        self.take_back(earlier)
        self.ask(request)

    def submit_and_ask(self, rollouts: Iterable[Rollout], request: Request) -> None:
        """Take rollouts that are claimed by *request* before anybody else can have them.

        Not where its caller is to give up at once: he may submit the same once more.
        """
        if self._is_hopeless(request):
            request.error = self._patience.error()
            request.gate.open()
            self._unseen.append(request)
            return
        self.submit(rollouts)
        self.ask(request)

    def take_back(self, request: Request) -> None:
        """Put back what *request* was given: its caller did not get it, or does not want it."""
        request.is_withdrawn = True  # it may come before the request itself
        if request.timer is not None:
            request.timer.cancel()
        given = self.delivery.take_back(request)
        for rollout in given:
            self._rollouts[rollout.task_id] = rollout
            self.books.of(rollout).collected(-1)
        if request.is_noted:
            self._witness.came_back(given)
            for one in request.trained:
                self.tally.came_back(one)
            request.trained = ()
        self._expire(given)
        self._set_dynamic(self._is_dynamic)  # attempts may be back that count no longer

    def delivered(self, request: Request, trained: Sequence[Trained]) -> None:
        """Take note that the caller of *request* got what it was given, *trained* of it for training."""
        if request.is_withdrawn:  # interrupted on the last line, so that it has gone back
            return
        self.delivery.received(request)
        request.is_noted, request.trained = True, trained
        self._witness.delivered(request.rollouts)
        for one in trained:
            self.tally.delivered(one)
        t10 = self.tally.warning()
        if t10 is not None:
            self._witness.unfair(t10)

    # -- looking -----------------------------------------------------------------------------------

    @property
    def requests(self) -> Sequence[Request]:
        """What callers wait for."""
        return self.delivery.requests

    def too_many_failures(self) -> BaseException | None:
        """Return what waiting callers are told when too many rollouts brought nothing; None: not so many."""
        return self._patience.error() if self._patience.is_over else None

    def hunger_of(self, request: Request) -> int:
        """Return how many more rollouts *request* wants to be pending for batches; 0: enough are."""
        pending = self.scheduler.training.of_batches
        if self._ending is not None:
            return 0
        if request.is_starved:
            return 0 if self._may_come(request) else 1
        return request.keep_pending - pending if pending <= request.keep_pending // 2 else 0

    def _may_come(self, batch: Request) -> bool:
        """Return whether enough for *batch* has ended, or something that may be for it has not."""
        if batch.there >= batch.count or self.scheduler.training.of_batches:
            return True
        return any(one.lane is Lane.BATCH for one in self.scheduler.running.values())

    # -- what follows from them --------------------------------------------------------------------

    def _serve(self) -> None:
        for request in list(self.delivery.requests):
            if self._is_hopeless(request):
                self._answer(request, self._patience.error())
                continue
            given = self.delivery.serve(request)
            if given is not None:
                for rollout in given:
                    del self._rollouts[rollout.task_id]
                    self.books.of(rollout).collected(1)
                self._answer(request, None)
            elif self._ending is not None:
                self._answer(request, self._ending())

    def _is_hopeless(self, request: Request) -> bool:
        return self._patience.is_over and self._ending is None and not request.is_eval

    def _answer(self, request: Request, error: BaseException | None) -> None:
        self.delivery.requests.remove(request)
        request.error = error
        if error is not None:
            self.delivery.take_back(request)
        if request.timer is not None:
            request.timer.cancel()
        request.gate.open()

    def _set_dynamic(self, is_dynamic: bool) -> None:
        self._is_dynamic = is_dynamic
        if not is_dynamic:
            for attempt in self.delivery.waiting_attempts():
                self.delivery.free(attempt)

    def _see_hunger(self, request: Request) -> None:
        request.hunger = self.hunger_of(request)
        if request.hunger:
            self._answer(request, None)

    def _holds(self, request: Request, rest: Sequence[Rollout]) -> bool:
        return self._ending is None and self._hold.delays(request, rest)

    def _give_up(self) -> None:
        for request in list(self.delivery.requests):
            if self._standstill.is_over(request):
                self._answer(request, self._standstill.error())
