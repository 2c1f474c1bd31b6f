"""A dispatcher with nothing around it: what it tells workers is noted, what they tell it is made up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from areal_core._distributed.dispatcher import Dispatcher
from areal_core._distributed.leases import Ended, LeaseRules, Link, Order, Parcel, Report
from areal_core._executor.port import Tracer
from areal_core._executor.rollout import Episode, Lane, Plan, Rollout, State, Verdict
from areal_core._record import EpisodeRecord
from core_stage import SCRIPTED, VirtualClock, VirtualTimer

BROUGHT: dict[str, Any] = {"rewards": 1.0}
NO_FIGURES = (0, None, 0.0, 0.0, 0.0)
Place = tuple[int, int]
"""A rollout, and the place of a member in its group; -1 is the judge."""


class Notes(Link):
    """Writes down what workers are told."""

    def __init__(self) -> None:
        self.lent: list[tuple[int, int, bool, list[int]]] = []
        """Worker, rollout, whether it is the first of it there, and the places in the group."""
        self.cancelled: list[tuple[int, Sequence[Place]]] = []
        self.forgotten: list[tuple[int, Sequence[int]]] = []
        self.taken_back: list[int] = []
        self.retired: list[int] = []
        self.killed: list[tuple[int, str]] = []

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        for order in orders:
            places = [episode.sample_idx for episode in order.episodes]
            self.lent.append((worker, order.parcel.rollout.task_id, order.is_first, places))

    def cancel(self, worker: int, episodes: Sequence[Place]) -> None:
        self.cancelled.append((worker, episodes))

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        self.forgotten.append((worker, parcels))

    def take_back(self, worker: int) -> None:
        self.taken_back.append(worker)

    def retire(self, worker: int) -> None:
        self.retired.append(worker)

    def kill(self, worker: int, why: str) -> None:
        self.killed.append((worker, why))


class Office:
    """A dispatcher, its clock, and what came of what it was given."""

    def __init__(self, *, workers: int = 2, slots: int = 2, most_ahead: int = 0, **rules: Any) -> None:
        self.rules = LeaseRules(slots=slots, most_ahead=most_ahead, **rules)
        self.clock = VirtualClock()
        self.link = Notes()
        self.ended: list[Episode] = []
        self.lost: list[Rollout] = []
        self.unbegun: list[Rollout] = []
        """Those of the lost of which nothing can have begun."""
        self.gone: list[tuple[int, str | None]] = []
        self.dispatcher = Dispatcher(
            self.rules,
            self.link,
            self,
            self.ended.extend,
            self._lose,
            lambda number, why: self.gone.append((number, why)),
        )
        self.tracer: Tracer | None = None
        """Told of each episode before it starts."""
        self._stood_still_s = 0.0
        self._ids = itertools.count()
        for number in range(1, workers + 1):
            self.dispatcher.joined(number)

    # -- its clock ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.time() + self._stood_still_s

    def call_later(self, delay_s: float, callback: Any) -> VirtualTimer:
        return self.clock.call_later(delay_s, callback)

    def stand_still(self, seconds: float) -> None:
        """Let this process do nothing for *seconds*: no timer of its rings in time."""
        self._stood_still_s += seconds

    # -- rollouts ----------------------------------------------------------------------------------

    def start(self, count: int = 1, *, group_size: int = 1, members: int | None = None) -> list[Rollout]:
        """Have *count* rollouts played; of each group *members* for now, None: all."""
        rollouts = [self._new(group_size) for _ in range(count)]
        for rollout in rollouts:
            self.start_more(rollout, group_size if members is None else members)
        self.dispatcher.go_on()
        return rollouts

    def start_more(self, rollout: Rollout, count: int = 1) -> None:
        """Have more members of a group played; `Dispatcher.go_on` sends them."""
        first = len(rollout.episodes)
        rollout.episodes += tuple(_episode(rollout, place) for place in range(first, first + count))
        if self.tracer is not None:
            for episode in rollout.episodes[first:]:
                self.tracer.starting(episode)
        self.dispatcher.start(rollout.episodes[first:])

    def judge(self, rollout: Rollout) -> None:
        """Have a group judged."""
        rollout.judge = _episode(rollout, -1)
        self.dispatcher.start([rollout.judge])
        self.dispatcher.go_on()

    def cancel(self, rollout: Rollout) -> None:
        """Tell all of *rollout* that has not ended to end."""
        for episode in rollout.members():
            if episode not in self.ended:
                episode.told_to_end = True
                self.dispatcher.cancel(episode)

    def finish(self, rollout: Rollout) -> None:
        """Let *rollout* have an outcome, as the core does."""
        rollout.state = State.FINISHED
        rollout.forget_episodes()
        self.dispatcher.go_on()

    def run_again(self, rollout: Rollout) -> None:
        """Begin *rollout* anew, as the core does with one that was lost."""
        rollout.forget_episodes()
        rollout.start_order = next(self._ids)
        self.start_more(rollout)
        self.dispatcher.go_on()

    def _new(self, group_size: int) -> Rollout:
        plan, number = Plan(SCRIPTED, None, group_size, False, False), next(self._ids)
        rollout = plan.rollout(number, None, Lane.OPEN)
        rollout.state, rollout.start_order = State.RUNNING, number
        return rollout

    # -- workers -----------------------------------------------------------------------------------

    def parcel(self, rollout: Rollout) -> Parcel:
        """Return what *rollout* is lent as."""
        found = [one for one in self._parcels() if one.rollout is rollout]
        assert len(found) == 1
        return found[0]

    def worker(self, rollout: Rollout) -> int:
        """Return who has *rollout*."""
        worker = self.parcel(rollout).worker
        assert worker is not None
        return worker.number

    def end(self, *rollouts: Rollout, place: int = 0, **fields: Any) -> None:
        """Have workers report the ends of *rollouts*, a report each."""
        for rollout in rollouts:
            parcel = self.parcel(rollout)
            self.report(self.worker(rollout), [an_end(parcel.number, place, **fields)])

    def give_back(self, worker: int, *rollouts: Rollout, places: Sequence[int] = (0,), **report: Any) -> None:
        """Have *worker* hand back what it has not begun."""
        returned = [(self.parcel(one).number, place) for one in rollouts for place in places]
        self.report(worker, returned=returned, **report)

    def report(self, worker: int, ended: Sequence[Ended] = (), **report: Any) -> None:
        """Have *worker* report."""
        self.dispatcher.reported(worker, Report(ended, **report))
        self.dispatcher.go_on()

    def live(self, seconds: float, *workers: int, **report: Any) -> None:
        """Let *seconds* pass, with a sign of life of each of *workers* in every one of them."""
        for _ in range(round(seconds)):
            self.clock.pass_over(1.0)
            for worker in workers:
                self.report(worker, **report)

    def _lose(self, rollouts: Sequence[Rollout], unbegun: AbstractSet[Rollout], why: str) -> None:
        self.lost += rollouts
        self.unbegun += [one for one in rollouts if one in unbegun]

    # -- what is to be seen ------------------------------------------------------------------------

    def loads(self) -> dict[int, int]:
        """Return how much each worker has."""
        return {worker.number: worker.load for worker in self.dispatcher.workers.values()}

    def has_nothing(self) -> bool:
        """Return whether the dispatcher remembers nothing of any rollout."""
        dispatcher = self.dispatcher
        tables = [dispatcher._resting, dispatcher._to_send, dispatcher._to_cancel, dispatcher._backlog]
        return not any(tables) and not self._parcels() and not any(self.loads().values())

    def _parcels(self) -> list[Parcel]:
        lent = [one for worker in self.dispatcher.workers.values() for one in worker.parcels.values()]
        return [*lent, *self.dispatcher._backlog]


def an_end(parcel: int, place: int = 0, **fields: Any) -> Ended:
    """Return the end of an episode that brought something, unless *fields* say otherwise."""
    told = {"verdict": Verdict(BROUGHT), "error": None, "timed_out": False, "seconds": 1.0}
    return Ended(parcel, place, figures=fields.pop("figures", NO_FIGURES), **{**told, **fields})


def _episode(rollout: Rollout, place: int) -> Episode:
    return Episode(rollout, place, EpisodeRecord())
