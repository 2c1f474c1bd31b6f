"""Everything that is simulated, wired together: `simulate`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from areal_core._distributed.leases import LeaseRules
from areal_core._distributed.pace import AHEAD_PER_SLOT
from areal_core._executor import settings
from areal_core._executor.books import BothBooks, RolloutLedger
from areal_core._executor.core import Core
from areal_core._executor.report import Tally
from areal_core._executor.rules import Rules
from areal_core._simulation.clock import VirtualClock, VirtualThread
from areal_core._simulation.driver import VirtualDesk, VirtualLink
from areal_core._simulation.forecast import Forecast
from areal_core._simulation.meter import Counting, Meter, Reading
from areal_core._simulation.routing import BoundlessEngine, VirtualEngine
from areal_core._simulation.scenario import Scenario
from areal_core._simulation.server import InferenceServer
from areal_core._simulation.trainer import Policy, Trainer
from areal_core._simulation.worker import Engine, VirtualWorker

_NEVER = 1 << 40


def simulate(scenario: Scenario) -> Forecast:
    """Return what comes of *scenario*. The same gives the same again."""
    return _World(scenario).run()


class _World:
    """One run."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._dice = random.Random(scenario.seed)
        self._clock = clock = VirtualClock()
        self._loop = VirtualThread(clock)
        costs = scenario.costs
        lease_rules = LeaseRules(slots=scenario.slots, most_ahead=AHEAD_PER_SLOT * scenario.slots)
        self._link = VirtualLink(clock, self._loop, costs, self._start_later, self._kill)
        self._desk = VirtualDesk(clock, self._loop, costs, lease_rules, self._link)
        self._witness, self._tally = Counting(), Tally()
        policy = Policy()
        rules = _rules(scenario, policy)
        books = BothBooks(RolloutLedger(), RolloutLedger())
        self._core = Core(rules, self._desk, self._desk, books, self._tally, self._witness)
        self._desk.open(self._core)
        self._trainer = Trainer(
            scenario, rules, clock, self._loop, self._desk, policy, self._hold, self._go_on
        )
        self._servers = [self._new_server() for _ in range(max(1, scenario.servers))]
        self._workers: dict[int, VirtualWorker] = {}  # those that live, the longest-lived first
        self._numbers = 0
        self._meter = Meter(scenario, clock, self._core.budget)
        self._desk.on_work = self._meter.see
        self._began = Reading()

    def run(self) -> Forecast:
        """Let it all happen."""
        scenario, clock = self._scenario, self._clock
        for _ in range(scenario.workers):
            self._start()
        for when in scenario.worker_deaths_s:
            clock.at(when, self._kill_one)
        if scenario.server_mtbf_s is not None:
            for server in self._servers:
                self._await_death_of(server, scenario.server_mtbf_s)
        clock.at(scenario.warm_up_s, self._begin_to_measure)
        self._trainer.run()
        ledger, report = self._core.books.training.snapshot(), self._tally.report()
        return self._meter.forecast(self._began, self._read(), ledger, report)

    def _begin_to_measure(self) -> None:
        self._began = self._read()

    def _read(self) -> Reading:
        return self._meter.read(
            self._trainer,
            self._desk,
            self._link,
            self._loop,
            self._servers,
            self._workers.values(),
            self._witness.seconds,
            self._tally.report().wasted_seconds,
        )

    # -- workers -----------------------------------------------------------------------------------

    def _start_later(self) -> None:
        self._clock.at(self._clock.time() + self._scenario.worker_start_s, self._start)

    def _start(self) -> None:
        self._numbers += 1
        scenario = self._scenario
        worker = VirtualWorker(
            self._numbers,
            scenario.slots,
            self._clock,
            scenario.costs,
            scenario.compute_s,
            self._new_engine(),
            self._link.sent,
        )
        self._meter.see_workers(len(self._workers))
        self._workers[worker.number] = worker
        self._link.joined(worker)
        if scenario.worker_mtbf_s is not None:
            lives_s = self._dice.expovariate(1.0 / scenario.worker_mtbf_s)
            self._clock.at(self._clock.time() + lives_s, self._die, worker)

    def _kill_one(self) -> None:
        worker = next(iter(self._workers.values()), None)
        if worker is not None:
            self._die(worker)

    def _die(self, worker: VirtualWorker) -> None:
        """Let a process end; the driver sees it later."""
        if worker.is_alive:
            self._kill(worker)
            seen_at = self._clock.time() + self._scenario.worker_death_seen_s
            self._clock.at(seen_at, self._desk.died, worker.number, "its process ended")

    def _kill(self, worker: VirtualWorker) -> None:
        if worker.is_alive:
            self._meter.see_workers(len(self._workers))
            del self._workers[worker.number]
            self._meter.died(worker)

    # -- servers -----------------------------------------------------------------------------------

    def _new_server(self) -> InferenceServer:
        scenario = self._scenario
        return InferenceServer(
            self._clock,
            scenario.token_s,
            scenario.server_tokens_per_s,
            scenario.server_slots,
            scenario.request_s,
            scenario.update_s > 0,
        )

    def _new_engine(self) -> Engine:
        scenario = self._scenario
        if not scenario.servers:
            return BoundlessEngine(self._servers[0], scenario.token_s)
        return VirtualEngine(
            self._clock, self._known_servers(), scenario.config.max_inflight_per_server, scenario.token_s
        )

    def _known_servers(self) -> Sequence[InferenceServer]:
        """Return those that the next worker knows: the next ones in turn."""
        most, all_of_them = self._scenario.servers_per_worker, self._servers
        if most is None or most >= len(all_of_them):
            return all_of_them
        first = (self._numbers - 1) * most
        return [all_of_them[place % len(all_of_them)] for place in range(first, first + most)]

    def _await_death_of(self, server: InferenceServer, mtbf_s: float) -> None:
        lives_s = self._dice.expovariate(1.0 / mtbf_s)
        self._clock.at(self._clock.time() + lives_s, self._lose_server, server, mtbf_s)

    def _lose_server(self, server: InferenceServer, mtbf_s: float) -> None:
        left = set(server.die())
        for worker in list(self._workers.values()):
            worker.lost_server(server, left)
        self._clock.at(self._clock.time() + self._scenario.server_start_s, self._have_again, server, mtbf_s)

    def _have_again(self, server: InferenceServer, mtbf_s: float) -> None:
        server.come_back()
        for worker in self._workers.values():
            worker.engine.came_back(server)
        self._await_death_of(server, mtbf_s)

    def _hold(self, holds: bool) -> None:
        self._desk.post(self._link.hold_generation, holds)
        if holds:
            for server in self._servers:
                server.pause()

    def _go_on(self, version: int) -> None:
        for server in self._servers:
            server.go_on(version)
        if self._scenario.update_s:
            for worker in self._workers.values():
                worker.continued(version)


def _rules(scenario: Scenario, policy: Policy) -> Rules:
    """Return the executor's rules, without those for when to give up."""
    _, rules = settings.of(scenario.config, policy, None, 1)
    return replace(rules, max_failures=_NEVER, max_unaccepted=_NEVER, stall_timeout_s=float(_NEVER))
