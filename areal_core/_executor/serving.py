"""The part of the core that callers ask: who gets what he waits for, and what did not arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from areal_core._executor.books import BothBooks
from areal_core._executor.delivery import Delivery
from areal_core._executor.patience import Patience
from areal_core._executor.port import Witness
from areal_core._executor.report import Tally, Trained
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import Rollout


class Serving:
    """Answers requests out of a *delivery*, and takes back what did not arrive.

    *rollouts* are those of the core that are not collected: what it gives is taken out of them.
    """

    def __init__(
        self,
        delivery: Delivery,
        patience: Patience,
        rollouts: dict[int, Rollout],
        books: BothBooks,
        tally: Tally,
        witness: Witness,
    ) -> None:
        self._delivery = delivery
        self._patience = patience
        self._rollouts = rollouts
        self._books = books
        self._tally = tally
        self._witness = witness
        self._unseen: list[Request] = []  # asked since the last time
        self.is_dynamic = False
        """Whether the batches count attempts."""

    # -- events ------------------------------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """Give a caller what he waits for as soon as it is there."""
        if request.is_withdrawn:
            return
        if request.want is Want.BATCH:
            self.is_dynamic = request.dynamic
            self.recount()
        request.error = self._delivery.claim(request, self._rollouts)
        if request.error is None:
            self._delivery.requests.append(request)
        else:
            self._delivery.take_back(request)
            request.gate.open()
        self._unseen.append(request)

    def refuses(self, request: Request) -> bool:
        """Return whether its caller is to give up at once; then he is told."""
        if not self._is_hopeless(request):
            return False
        request.error = self._patience.error()
        request.gate.open()
        self._unseen.append(request)
        return True

    def take_back(self, request: Request) -> list[Rollout]:
        """Put back what *request* was given, and return it; some of it may be too old by now."""
        request.is_withdrawn = True  # it may come before the request itself
        if request.timer is not None:
            request.timer.cancel()
        given = self._delivery.take_back(request)
        for rollout in given:
            self._rollouts[rollout.task_id] = rollout
            self._books.of(rollout).collected(-1)
        if request.is_noted:
            self._witness.came_back(given)
            for one in request.trained:
                self._tally.came_back(one)
            request.trained = ()
        return given

    def recount(self) -> None:
        """Free the attempts that wait, some of them perhaps back again, where the batches count none."""
        if not self.is_dynamic:
            for attempt in self._delivery.waiting_attempts():
                self._delivery.free(attempt)

    def delivered(self, request: Request, trained: Sequence[Trained]) -> None:
        """Take note that the caller of *request* got what it was given, *trained* of it for training."""
        if request.is_withdrawn:  # interrupted on the last line, so that it has gone back
            return
        self._delivery.received(request)
        request.is_noted, request.trained = True, trained
        self._witness.delivered(request.rollouts)
        for one in trained:
            self._tally.delivered(one)
        self._tally.arrived(rollout.task_id for rollout in request.rollouts)
        t10 = self._tally.warning()
        if t10 is not None:
            self._witness.unfair(t10)

    # -- what follows from them --------------------------------------------------------------------

    def serve(self, ending: Callable[[], BaseException] | None) -> None:
        """Answer all who can be; once the core has ended, the others too, with an error of *ending*."""
        for request in list(self._delivery.requests):
            if ending is None and self._is_hopeless(request):
                self.answer(request, self._patience.error())
                continue
            given = self._delivery.serve(request)
            if given is not None:
                for rollout in given:
                    del self._rollouts[rollout.task_id]
                    self._books.of(rollout).collected(1)
                self.answer(request, None)
            elif ending is not None:
                self.answer(request, ending())

    def answer(self, request: Request, error: BaseException | None) -> None:
        """Let the caller of *request* go on: with what it was given, or with *error*."""
        self._delivery.requests.remove(request)
        request.error = error
        if error is not None:
            self._delivery.take_back(request)
        if request.timer is not None:
            request.timer.cancel()
        request.gate.open()

    def say_looked(self) -> None:
        """Tell those who have asked since the last time that they were looked at."""
        for request in self._unseen:
            request.looked.open()
        self._unseen.clear()

    def _is_hopeless(self, request: Request) -> bool:
        return self._patience.is_over and not request.is_eval
