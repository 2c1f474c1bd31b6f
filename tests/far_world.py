"""A world whose episodes are played by workers: the core's own, with what is between it and an episode.

Dispatcher, floors, outboxes and what goes on the wire are the library's. The world is what is left: the
processes of workers and their loops, which may hang, and the post, which takes as long as it likes.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import structs

from areal_core._distributed.dispatcher import Dispatcher
from areal_core._distributed.leases import LeaseRules, Link, Order
from areal_core._distributed.wire import Orders, encode, unship
from areal_core._executor.books import BothBooks, RolloutLedger
from areal_core._executor.core import Core
from areal_core._executor.local_desk import EpisodeJob
from areal_core._executor.report import Tally
from areal_core._executor.rollout import Episode, Rollout, State
from areal_core._executor.rules import Rules
from areal_core.errors import WorkerLostError
from core_stage import Act, Play, Stage
from core_world import World
from far_worker import FarWorker


class FarStage(Stage):
    """The port: a dispatcher. Its plays are those that the core counts as begun."""

    def __init__(self, world: FarWorld, rules: LeaseRules, link: Post) -> None:
        super().__init__(world)
        self._far = world
        self.dispatcher = Dispatcher(rules, link, world, self._take, self._lose, self._gone)
        self.lost: list[Rollout] = []
        self.gone: list[tuple[int, str | None]] = []

    def start(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            self.plays[episode] = Play(episode, Act(), self._far.time())
            self.started.append(episode)
        self.dispatcher.start(episodes)

    def cancel(self, episode: Episode) -> None:
        self.dispatcher.cancel(episode)

    def _take(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            del self.plays[episode]
            if episode.is_judge and episode.verdict is not None and episode.verdict.trajectory is not None:
                _check_joined(episode.verdict.trajectory, episode.rollout)
        self._far.post(self._far.core.episodes_ended, episodes)

    def _lose(self, rollouts: Sequence[Rollout], unbegun: AbstractSet[Rollout], why: str) -> None:
        self.lost += rollouts
        self._check_unbegun(self._far.workers[self.gone[-1][0]], rollouts, unbegun)
        self._far.post(self._tell_lost, rollouts, unbegun, WorkerLostError(why))

    def _check_unbegun(
        self, worker: FarWorker, rollouts: Sequence[Rollout], unbegun: AbstractSet[Rollout]
    ) -> None:
        assert unbegun <= set(rollouts)
        if not worker.has_unsaid_ends():
            begun = {job.task_id for job in worker.plays}
            assert not begun & {rollout.task_id for rollout in unbegun}

    def _tell_lost(
        self, rollouts: Sequence[Rollout], unbegun: AbstractSet[Rollout], why: WorkerLostError
    ) -> None:
        """Tell the core, and check what it makes of it."""
        core = self._far.core
        before = [
            (one, one.task_id in core.scheduler.running, one.is_ending, one.losses, one.requeues)
            for one in rollouts
        ]
        core.rollouts_lost(rollouts, why, unbegun)
        for episode in [one for one in self.plays if one.rollout in rollouts]:
            del self.plays[episode]  # a judge may have begun since
        for rollout, ran, was_ending, losses, requeues in before:
            assert rollout.losses == losses + (ran and rollout not in unbegun)
            if not ran:  # it had ended, and nobody knew
                continue
            assert rollout.task_id not in core.scheduler.running
            if was_ending:
                _check_ended_as_it_was_to(rollout, requeues)
            elif rollout.losses > self._far.rules.max_losses:
                assert rollout.outcome is not None and rollout.outcome.status == "failed"
                assert rollout.outcome.error is why
            else:
                assert rollout.state is State.PENDING and not rollout.episodes and not rollout.is_charged
                assert rollout.requeues == requeues

    def _gone(self, number: int, why: str | None) -> None:
        self.gone.append((number, why))


def _check_joined(trajectory: dict[str, Any], group: Rollout) -> None:
    verdicts = [(one.sample_idx, one.verdict) for one in group.episodes]
    brought = [place for place, one in verdicts if one is not None and one.trajectory is not None]
    assert trajectory["input_ids"][:, 0].tolist() == brought, "of each member one row, in its place"


def _check_ended_as_it_was_to(rollout: Rollout, requeues: int) -> None:
    if rollout.is_cancelled:
        assert rollout.outcome is not None and rollout.outcome.status == "cancelled"
    elif rollout.outcome is None:
        assert rollout.state is State.PENDING and rollout.requeues == requeues + 1, "it was too old"
    else:
        assert rollout.outcome.status in ("stale", "failed", "timed_out", "cancelled")
        assert type(rollout.outcome.error) is not WorkerLostError


@dataclass(slots=True, eq=False)
class _Letter:
    """What is to be sent to one worker."""

    give: list[Order] = field(default_factory=list)
    cancel: list[tuple[int, int]] = field(default_factory=list)
    forget: list[int] = field(default_factory=list)
    takes_back: bool = False


class Post(Link):
    """Takes letters to workers and reports back, each when it is told to."""

    def __init__(self, world: FarWorld) -> None:
        self._world = world
        self._letters: dict[int, _Letter] = {}
        self._order = 0
        self._told = (0, False)
        self.killed: list[tuple[int, str]] = []

    def tell(self, version: int, is_paused: bool) -> None:
        if self._told != (version, is_paused):
            self._told = version, is_paused
            for number in self._world.workers:
                self._letter(number)

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        self._letter(worker).give += orders

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        self._letter(worker).cancel += episodes

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        self._letter(worker).forget += parcels

    def take_back(self, worker: int) -> None:
        self._letter(worker).takes_back = True

    def retire(self, worker: int) -> None:
        gone = self._world.workers[worker]
        assert not gone.plays, "it was retired while it played"
        gone.is_dead = True

    def kill(self, worker: int, why: str) -> None:
        self.killed.append((worker, why))
        self._world.workers[worker].is_dead = True

    def flush(self) -> None:
        letters, self._letters = self._letters, {}
        self._order += 1
        for number, letter in letters.items():
            worker = self._world.workers[number]
            worker.letters.append(encode(self._orders(letter, worker)))

    def _letter(self, worker: int) -> _Letter:
        return self._letters.setdefault(worker, _Letter())

    def _orders(self, letter: _Letter, worker: FarWorker) -> Orders:
        orders = Orders(self._order, *self._told, False, letter.takes_back)
        orders.plans, orders.cancel, orders.forget = {}, letter.cancel, letter.forget
        orders.give = []
        for order in letter.give:
            assert worker.number == getattr(order.parcel.worker, "number", None)
            head = self._head(order, worker, orders) if order.is_first else None
            places = [episode.sample_idx for episode in order.episodes]
            orders.give.append((order.parcel.number, head, places))
        return orders

    def _head(self, order: Order, worker: FarWorker, orders: Orders) -> bytes:
        rollout = order.parcel.rollout
        made = rollout.plan
        key = made.accept is not None, made.group_size, made.keep_rest, made.is_eval
        plan = worker.plans.get(key)
        if plan is None:
            plan = worker.plans[key] = len(worker.plans) + 1
            orders.plans[plan] = pickle.dumps(made)
        return pickle.dumps((plan, rollout.task_id, rollout.data_id, rollout.start_version, rollout.data))


class FarWorld(World):
    """A world whose core has workers. Nothing reaches them, or comes back, unless it is told to."""

    stage: FarStage

    def __init__(self, rules: Rules, lease_rules: LeaseRules, *, version: int = 0) -> None:
        super().__init__(rules, version=version)
        self.lease_rules = lease_rules = structs.replace(lease_rules, max_losses=rules.max_losses)
        self.workers: dict[int, FarWorker] = {}
        """All that there ever were, by number."""
        self.link = Post(self)
        self.stage = FarStage(self, lease_rules, self.link)
        self.dispatcher = self.stage.dispatcher
        books = BothBooks(RolloutLedger(), RolloutLedger())
        self.core = Core(rules, self.stage, self, books, Tally(), self.told)
        self.post(self.core.set_version, version)

    def work(self) -> None:
        """Do what a desk with a dispatcher does in one piece of work."""
        if not hasattr(self, "dispatcher"):  # it is about to be made
            super().work()
            return
        self._is_working = True
        self._do_all()
        while self._ops:
            self._do_all()
        self.link.tell(self.core.budget.version, self.core.scheduler.is_paused)
        self.dispatcher.go_on()
        self.link.flush()
        self._is_working = False
        self.on_event()

    def _do_all(self) -> None:
        while self._ops or self.returned:
            while self.returned:
                self.core.take_back(self.returned.popleft())
            if self._ops:
                op, args = self._ops.popleft()
                op(*args)
        self.core.go_on()

    # -- workers -----------------------------------------------------------------------------------

    @property
    def alive(self) -> list[FarWorker]:
        return [worker for worker in self.workers.values() if not worker.is_dead]

    def join(self, count: int = 1) -> None:
        """Have *count* workers more."""
        for _ in range(count):
            number = len(self.workers) + 1
            self.workers[number] = FarWorker(self, number, self.lease_rules.slots)
            self.post(self.dispatcher.joined, number)

    def deliver(self, worker: FarWorker) -> bool:
        """Bring the next report of *worker*, or of its death; return whether there was anything."""
        if worker.reports:
            report = unship(worker.reports.popleft(), pickle.loads)
            self.post(self.dispatcher.reported, worker.number, report)
            return True
        if worker.is_dead and not worker.is_buried:
            worker.is_buried = True
            self.post(self.dispatcher.died, worker.number, "its process ended")
            return True
        return False

    def exchange(self) -> bool:
        """Bring all letters and reports to where they belong; return whether a letter was among them."""
        is_new = False
        for worker in list(self.workers.values()):
            while worker.letters and not worker.is_dead:
                worker.read_letter()
                is_new = True
            if not worker.is_dead:
                worker.write_report()
            while self.deliver(worker):
                pass
        return is_new

    def jobs(self) -> list[tuple[FarWorker, EpisodeJob]]:
        """Return the episodes that may end: those that run at workers whose loops turn."""
        return [(worker, job) for worker in self.alive if worker.hangs_since is None for job in worker.plays]

    def job_of(self, rollout: Rollout, member: int = 0) -> tuple[FarWorker, EpisodeJob]:
        """Return where an episode of *rollout* runs, and which one it is there."""
        return next(
            (worker, job)
            for worker in self.alive
            for job in worker.plays
            if (job.task_id, job.episode.sample_idx) == (rollout.task_id, member)
        )

    def finish(self, rollout: Rollout, ending: Any = "tokens", member: int = 0, **act: Any) -> None:
        """Let an episode end, and the core learn of it."""
        worker, job = self.job_of(rollout, member)
        worker.end(job, replace(worker.plays[job].act, ending=ending, **act))
        self.exchange()
