"""Everything the executor decides, in one thread and without I/O: what starts, what is kept, who gets it.

One thread at a time owns a core; nothing here is locked. Each method of the first part is one event; after
one or more of them `go_on` does all that they made possible::

    submit, episodes_ended, set_version, resume    ->  admit: somebody may start
    episodes_ended, set_version, ask, a timer      ->  serve: somebody may get what he waits for
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from msgspec.structs import replace

from areal_core._executor import ending
from areal_core._executor.ageing import Ageing
from areal_core._executor.books import BothBooks
from areal_core._executor.budget import Budget
from areal_core._executor.delivery import Delivery
from areal_core._executor.hold import Hold
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.patience import Patience
from areal_core._executor.port import Clock, Port, Witness, Witnesses
from areal_core._executor.report import Tally, Trained
from areal_core._executor.requests import Request, Want
from areal_core._executor.rollout import LOST, Episode, Lane, Rollout, State
from areal_core._executor.rules import Rules
from areal_core._executor.scheduler import Scheduler
from areal_core._executor.serving import Serving
from areal_core._executor.standstill import Standstill

_ATTEMPTS = ("rejected", "failed", "timed_out")


class Core:
    """The rollouts of one executor, from submit to delivery."""

    def __init__(
        self, rules: Rules, port: Port, clock: Clock, books: BothBooks, tally: Tally, witness: Witness
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._witness = Witnesses(witness)
        self.books = books
        self.tally = tally
        self.budget = Budget(rules)
        self.scheduler = Scheduler(
            self.budget, port, clock, self._rollout_began, self._rollout_ended, self._member_failed
        )
        self._ageing = Ageing(rules, self.budget)
        self.delivery = Delivery(self.budget, self._holds)
        self._hold = Hold(rules, self.budget, clock, self.scheduler.running.values, self.go_on)
        self._standstill = Standstill(rules, self.budget, clock, self._witness, self._give_up)
        self._patience = Patience(rules)
        self._rollouts: dict[int, Rollout] = {}  # all that are not collected
        self._ending: Callable[[], BaseException] | None = None
        self._paused_at = 0.0
        self._serving = Serving(self.delivery, self._patience, self._rollouts, books, tally, self._witness)

    # -- events ------------------------------------------------------------------------------------

    def submit(self, rollouts: Iterable[Rollout]) -> None:
        """Take new rollouts, in this order, each once. Once the core has ended they end as cancelled."""
        for rollout in rollouts:
            if rollout.is_submitted or rollout.is_abandoned:
                continue  # its caller was interrupted, and has submitted it again, or not
            rollout.is_submitted = True
            self._rollouts[rollout.task_id] = rollout
            self.books.of(rollout).submitted()
            self._enqueue(rollout)
            if self._ending is not None:
                self.scheduler.cancel(rollout)

    def ask(self, request: Request) -> None:
        """Give a caller what he waits for as soon as it is there."""
        self._serving.ask(request)

    def ask_again(self, earlier: Request, request: Request) -> None:
        """Take back what *earlier* was given and give *request* what there is now; claims stay claimed."""
        self.take_back(earlier)
        self.ask(request)

    def submit_and_ask(self, rollouts: Iterable[Rollout], request: Request) -> None:
        """Take rollouts that are claimed by *request* before anybody else can have them.

        Not where its caller is to give up at once: he may submit the same once more.
        """
        if self._ending is None and self._serving.refuses(request):
            return
        self.submit(rollouts)
        self.ask(request)

    def take_back(self, request: Request) -> None:
        """Put back what *request* was given: its caller did not get it, or does not want it."""
        self._expire(self._serving.take_back(request), self.budget.fell_to(request.changes))
        self._serving.recount()

    def delivered(self, request: Request, trained: Sequence[Trained]) -> None:
        """Take note that the caller of *request* got what it was given, *trained* of it for training."""
        self._serving.delivered(request, trained)

    def recover(self, rollouts: Iterable[Rollout]) -> None:
        """Take what an earlier run finished, each once, to be delivered before all else.

        What is too old is played again; where its data is lost it is_abandoned instead.
        """
        for rollout in rollouts:
            if rollout.is_submitted or rollout.is_abandoned:
                continue
            is_young = self._ageing.why_expired(rollout, self.budget.version) is None
            self._witness.recovered(rollout, is_young)
            if is_young:
                self._take_finished(rollout)
            elif rollout.data is LOST:
                rollout.is_abandoned = True
            else:
                rollout.restart()
                self.submit([rollout])

    def episodes_ended(self, episodes: Iterable[Episode]) -> None:
        """Take note of the ends of episodes; their fields say how."""
        for episode in episodes:
            self.scheduler.episode_ended(episode)

    def rollouts_lost(
        self, rollouts: Iterable[Rollout], why: BaseException, unbegun: Collection[Rollout] = ()
    ) -> None:
        """Take note that all that ran of *rollouts* was lost with whoever ran it.

        Each runs again from its beginning, ahead of those that wait; *why* is the error of one that was lost
        too often. For those that had not begun there, *unbegun*, it does not count.
        """
        # Each goes ahead of the one before it, so that the oldest is the first of all.
        for rollout in sorted(rollouts, key=lambda one: one.start_order, reverse=True):
            if not self.scheduler.lose(rollout):
                continue
            rollout.losses += rollout not in unbegun
            if rollout.losses > self._rules.max_losses and not rollout.is_ending:
                rollout.failure = rollout.episodes[-1]
                rollout.failure.error, rollout.failure.timed_out = why, False
            if rollout.is_ending or self._ending is not None:
                self._rollout_ended(rollout)
                continue
            rollout.forget_episodes()
            self.scheduler.uncharge(rollout)
            self.books.of(rollout).was_lost()
            self._witness.was_lost(rollout)
            rollout.restart(requeued=False)
            self._enqueue(rollout, first=True)

    def cancel(self, task_id: int) -> bool:
        """Have a rollout end as cancelled; return whether it does, or did."""
        rollout = self._rollouts.get(task_id)
        if rollout is None:
            return False
        if rollout.state is State.FINISHED:
            return rollout.outcome is not None and rollout.outcome.status == "cancelled"
        if not rollout.is_cancelled:
            self.scheduler.cancel(rollout)
        return rollout.is_cancelled

    def set_version(self, version: int) -> None:
        """Take note of a policy version: there is new budget, and some of what there was is too old."""
        if version == self.budget.version:
            return
        before = self.budget.changes
        self.budget.set_version(version)
        fell_to = self.budget.fell_to(before)
        self._expire(self.delivery.finished(), fell_to)
        for rollout in list(self.scheduler.running.values()):
            why = self._ageing.why_doomed(rollout, fell_to)
            if why is not None:
                self.scheduler.doom(rollout, why)

    def pause(self) -> None:
        """Start nothing more."""
        if not self.scheduler.is_paused:
            self._paused_at = self._clock.time()
        self.scheduler.is_paused = True

    def resume(self) -> None:
        """Start what waits."""
        self.scheduler.is_paused = False

    def give_back(self, count: int) -> None:
        """Free the budget of *count* rollouts that were delivered and not trained on. Raises ValueError."""
        self.budget.give_back(count)

    def reset_failures(self) -> None:
        """Forget the failures so far, and go on."""
        self._patience.reset()

    def end(self, ending: Callable[[], BaseException]) -> None:
        """Start nothing more, and have everything end as cancelled. Callers get errors of *ending*."""
        if self._ending is not None:
            return
        self._ending = ending
        self._witness.ending()
        for line in (self.scheduler.training, self.scheduler.evaluation):
            for rollout in line.all_pending():
                self.scheduler.cancel(rollout)
        for rollout in list(self.scheduler.running.values()):
            self.scheduler.cancel(rollout)
        for request in list(self.delivery.requests):
            self._serving.answer(request, ending())

    def abandon_episodes(self) -> None:
        """Let all that runs be over; for the very end, after `end`, when nobody is left to say so."""
        for rollout in list(self.scheduler.running.values()):
            for episode in rollout.members():
                if not episode.is_over:
                    self.scheduler.episode_ended(episode)

    def tell_also(self, witness: Witness) -> None:
        """Tell *witness*, too, of what happens from now on."""
        self._witness.add(witness)

    # -- looking -----------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether nothing starts any more."""
        return self._ending is not None

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

    def paused_for_s(self) -> float:
        """Return how long ago it was paused, if it is."""
        return self._clock.time() - self._paused_at

    # -- what follows from them --------------------------------------------------------------------

    def go_on(self) -> None:
        """Do all that the events since the last time made possible."""
        self._serving.serve(self._ending)
        if self._ending is None:
            self.scheduler.admit(training_too=not self._patience.is_over)
        for request in list(self.delivery.requests):
            if request.want is Want.BATCH:
                request.hunger = self.hunger_of(request)
                if request.hunger:
                    self._serving.answer(request, None)
        self._standstill.see(self.delivery.requests, self.scheduler.is_paused)
        self._serving.say_looked()

    def _holds(self, request: Request, rest: Sequence[Rollout]) -> bool:
        return self._ending is None and self._hold.delays(request, rest)

    def _give_up(self) -> None:
        for request in list(self.delivery.requests):
            if self._standstill.is_over(request):
                self._serving.answer(request, self._standstill.error())

    def _enqueue(self, rollout: Rollout, *, first: bool = False) -> None:
        self.scheduler.enqueue(rollout, first=first)
        self._witness.enqueued(rollout)

    def _take_finished(self, rollout: Rollout) -> None:
        rollout.is_submitted = rollout.is_charged = True
        self._rollouts[rollout.task_id] = rollout
        books = self.books.of(rollout)
        books.submitted()
        books.ended(State.PENDING, "accepted")
        self.budget.waiting += 1
        self.delivery.keep(rollout)

    def _rollout_began(self, rollout: Rollout) -> None:
        self.books.of(rollout).began()
        self._witness.began(rollout)

    def _member_failed(self, member: Episode) -> None:
        self._witness.member_failed(member)

    def _rollout_ended(self, rollout: Rollout) -> None:
        if rollout.doom is not None and not rollout.is_cancelled:
            self._too_old(rollout, rollout.doom)
            return
        outcome, rollout.ages = ending.outcome_of(rollout, self._clock.time(), self._ageing.bound_of(rollout))
        why = self._ageing.why_too_old(rollout) if outcome.status == "accepted" else None
        if why is not None:
            self._too_old(rollout, why)
        else:
            if outcome.status == "accepted":
                rollout.packed = ending.packed_of(rollout)
            rollout.forget_episodes()
            self._finish(rollout, outcome)

    def _finish(self, rollout: Rollout, outcome: RolloutOutcome) -> None:
        was, rollout.state, rollout.outcome = rollout.state, State.FINISHED, outcome
        self.scheduler.settle(rollout, keeps_unit=self._keeps_unit(rollout, outcome))
        self.books.of(rollout).ended(was, outcome.status)
        if not rollout.plan.is_eval and not rollout.is_cancelled:
            self._patience.note(outcome)
        self._witness.ended(rollout)
        self.delivery.keep(rollout)

    def _keeps_unit(self, rollout: Rollout, outcome: RolloutOutcome) -> bool:
        if outcome.status == "accepted":
            return True
        counts = self._serving.is_dynamic and rollout.lane is Lane.BATCH and outcome.status in _ATTEMPTS
        return counts and not self._ageing.is_spent(rollout)

    # -- what is too old ---------------------------------------------------------------------------

    def _too_old(self, rollout: Rollout, why: str) -> None:
        """Run a rollout that has just ended again, or let it be stale."""
        outcome = ending.make(rollout, self._clock.time(), "stale", reason=why)
        rollout.forget_episodes()
        self.tally.wasted(outcome.seconds, rollout.busy_s)
        if self._may_run_again(rollout):
            self.scheduler.uncharge(rollout)
            self.books.of(rollout).runs_again(State.RUNNING)
            self._witness.ran_in_vain(rollout)
            self._run_again(rollout)
        else:
            self._finish(rollout, outcome)

    def _expire(self, finished: Iterable[Rollout], fell_to: int | None) -> None:
        """Free what finished rollouts that are too old take up: those that wait to be collected."""
        for rollout in list(finished):
            why = self._ageing.why_expired(rollout, fell_to)
            if why is None:
                continue
            if not rollout.is_accepted:
                self.delivery.free(rollout)
                continue
            self.delivery.drop(rollout)
            self.budget.waiting -= rollout.is_charged
            rollout.is_charged = False
            self.tally.wasted(rollout.outcome.seconds if rollout.outcome else 0.0, rollout.busy_s)
            runs_again = self._may_run_again(rollout)
            self._witness.went_stale(rollout, runs_again)
            if runs_again:
                self.books.of(rollout).runs_again(State.FINISHED)
                self._run_again(rollout)
            else:
                self.books.of(rollout).went_stale()
                self._make_stale(rollout, why)
                self.delivery.keep(rollout)

    def _may_run_again(self, rollout: Rollout) -> bool:
        return self._ending is None and self._ageing.may_run_again(rollout)

    def _run_again(self, rollout: Rollout) -> None:
        rollout.restart()
        self._enqueue(rollout, first=True)

    def _make_stale(self, rollout: Rollout, why: str) -> None:
        assert rollout.outcome is not None
        rollout.outcome = replace(rollout.outcome, status="stale", trajectory=None, origin=None, reason=why)
        self._patience.note(rollout.outcome)
