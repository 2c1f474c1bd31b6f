"""The driver: the library's own core, desk and dispatcher, on a thread in virtual time that they cost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import cast

from areal_core._distributed.far_desk import FarDesk, FarLink
from areal_core._distributed.leases import LeaseRules, Order, Report
from areal_core._distributed.worker import TAKES
from areal_core._executor.core import Core
from areal_core._executor.rollout import Episode
from areal_core._runner.life import Life
from areal_core._simulation.clock import VirtualClock, VirtualThread, VirtualTimer
from areal_core._simulation.scenario import Costs
from areal_core._simulation.worker import Given, Message, VirtualWorker


class VirtualLink(FarLink):
    """Takes messages to workers and calls for what has ended, and has workers started and killed.

    *start* is called for each worker that is to be started, *kill* with one that is to die.
    """

    def __init__(
        self,
        clock: VirtualClock,
        loop: VirtualThread,
        costs: Costs,
        start: Callable[[], None],
        kill: Callable[[VirtualWorker], None],
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._costs = costs
        self._start = start
        self._kill = kill
        self.desk: VirtualDesk | None = None
        self.workers: dict[int, VirtualWorker] = {}
        """Those that have joined, as far as the driver knows."""
        self._messages: dict[int, Message] = {}
        self._to_start = 0
        self._version, self._is_paused = 0, False
        self.delays_s = 0.0
        """How long reports waited for the driver, together."""
        self.reports = 0

    # -- what the desk wants -----------------------------------------------------------------------

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Have episodes played."""
        message = self._message_for(worker)
        for order in orders:
            rollout = order.parcel.rollout
            places = [episode.sample_idx for episode in order.episodes]
            message.give.append(
                Given(order.parcel.number, order.is_first, rollout.data, rollout.plan.group_size, places)
            )

    def cancel(self, worker: int, episodes: Sequence[tuple[int, int]]) -> None:
        """Cancel episodes."""
        self._message_for(worker).cancel += episodes

    def forget(self, worker: int, parcels: Sequence[int]) -> None:
        """Have parcels forgotten."""
        self._message_for(worker).forget += parcels

    def take_back(self, worker: int) -> None:
        """Have it hand back what it has not begun."""
        self._message_for(worker).takes_back = True

    def retire(self, worker: int) -> None:
        """End one that has nothing any more."""

    def kill(self, worker: int, why: str) -> None:
        """End one at once."""
        self._kill(self.workers[worker])

    def tell(self, version: int, is_paused: bool) -> None:
        """Tell all workers."""
        self._version, self._is_paused = version, is_paused
        self._tell_all()

    def hold_generation(self, holds: bool) -> None:
        """Tell all workers. That nothing is generated meanwhile, the servers know."""
        self._tell_all()

    def _tell_all(self) -> None:
        for number in self.workers:
            self._message_for(number)

    def gone(self, worker: int, why: str | None) -> None:
        """Replace one that is no more."""
        gone = self.workers.pop(worker)
        self._messages.pop(worker, None)
        if gone.is_alive:
            self._kill(gone)
        self._to_start += 1

    def flush(self) -> None:
        """Send what was said since the last time, one message after the other."""
        messages, self._messages = self._messages, {}
        costs, transport_s = self._costs, self._costs.transport_s
        each_s = (costs.driver_exchange_s + costs.ray_driver_s) / 2
        now = self._clock.time()
        for number, message in messages.items():
            message.version, message.is_paused = self._version, self._is_paused
            spent_s = self._loop.spend(each_s)
            self._clock.at(now + spent_s + transport_s, self.workers[number].receive, message)
        for _ in range(self._to_start):
            self._start()
        self._to_start = 0

    def _message_for(self, worker: int) -> Message:
        message = self._messages.get(worker)
        if message is None:
            message = self._messages[worker] = Message(self._version, self._is_paused)
        return message

    # -- what workers do ---------------------------------------------------------------------------

    def joined(self, worker: VirtualWorker) -> None:
        """Take note that *worker* has started."""
        assert self.desk is not None
        self.workers[worker.number] = worker
        self._message_for(worker.number)  # it learns version and pause
        self.desk.joined(worker.number)
        for _ in range(TAKES):
            self._fetch(worker)

    def sent(self, worker: VirtualWorker, report: Report) -> None:
        """Take a report, which has just been sent."""
        self._clock.at(self._clock.time() + self._costs.transport_s, self._came, worker, report)

    def _came(self, worker: VirtualWorker, report: Report) -> None:
        self._loop.put(0.0, self._read, worker, report, self._clock.time())

    def _read(self, worker: VirtualWorker, report: Report, came_at: float) -> None:
        assert self.desk is not None
        costs = self._costs
        self.delays_s += self._clock.time() - came_at
        self.reports += 1
        self._fetch(worker)
        self._loop.spend(
            (costs.driver_exchange_s + costs.ray_driver_s) / 2
            + len(report.ended) * costs.driver_episode_s / 2
            + len(report.stages) * costs.driver_stage_s
        )
        self.desk.reported(worker.number, report)

    def _fetch(self, worker: VirtualWorker) -> None:
        assert self.desk is not None
        self._clock.at(self._clock.time() + self._costs.transport_s, worker.fetch, *self.desk.dispatcher.pace)


class VirtualDesk(FarDesk):
    """The desk, with its work done in virtual time by *loop*."""

    def __init__(
        self,
        clock: VirtualClock,
        loop: VirtualThread,
        costs: Costs,
        rules: LeaseRules,
        link: VirtualLink,
    ) -> None:
        super().__init__(cast(Life, None), rules, link)  # the runner's life, for which is all that follows
        self._clock = clock
        self._loop = loop
        self._costs = costs
        self.on_work: Callable[[], None] | None = None
        """Called before each piece of work."""
        link.desk = self
        self.ended = 0
        """How many episodes have come back."""

    def open(self, core: Core) -> None:
        """Begin to work on *core*."""
        self._core = core

    def _have_it_done(self) -> None:
        self._loop.put(0.0, self._work)

    def time(self) -> float:
        """Return the time."""
        return self._clock.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        """Call *callback* in its turn."""
        return self._clock.call_later(delay_s, lambda: self._loop.put(0.0, self._on_timer, callback))

    def start(self, episodes: Sequence[Episode]) -> None:
        """Have *episodes* played, when this piece of work is done."""
        self._loop.spend(len(episodes) * self._costs.driver_episode_s / 2)
        super().start(episodes)

    def _work(self, most: int = sys.maxsize) -> None:
        if self.on_work is not None:
            self.on_work()
        super()._work(most)

    def _take(self, episodes: Sequence[Episode]) -> None:
        self.ended += len(episodes)
        super()._take(episodes)

    def _gathered(self) -> Callable[[], None]:
        if self.dispatcher.waiting:
            self._loop.spend(len(self.dispatcher.workers) * self._costs.driver_worker_s)
        return super()._gathered()
