"""What is counted of a simulated run, and what a stretch of it comes to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from areal_core._executor.books import RolloutLedger
from areal_core._executor.budget import Budget
from areal_core._executor.port import Witness
from areal_core._executor.report import StalenessReport
from areal_core._executor.rollout import Rollout
from areal_core._simulation.clock import VirtualClock, VirtualThread
from areal_core._simulation.driver import VirtualDesk, VirtualLink
from areal_core._simulation.forecast import Forecast
from areal_core._simulation.scenario import Scenario
from areal_core._simulation.server import InferenceServer
from areal_core._simulation.trainer import Trainer
from areal_core._simulation.worker import VirtualWorker


@dataclass(frozen=True, slots=True)
class Reading:
    """What there has been by a moment. Seconds of several things at once are added up."""

    at_s: float = 0.0
    ended: int = 0
    trajectories: int = 0
    taken_at_s: float = 0.0
    first: tuple[float, int] | None = None
    """When the first batch was taken, and of how many; None: none was so far."""
    batches: int = 0
    tokens: int = 0
    requests_s: float = 0.0
    in_flight_s: float = 0.0
    driver_s: float = 0.0
    delays_s: float = 0.0
    reports: int = 0
    loops_s: float = 0.0
    workers_s: float = 0.0
    trainer_s: float = 0.0
    episodes_s: float = 0.0
    old_s: float = 0.0
    lost_s: float = 0.0
    deaths: int = 0


class Counting(Witness):
    """Adds up how long the episodes of rollouts ran that have ended."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def ended(self, rollout: Rollout) -> None:
        """Count one that has an outcome."""
        self.seconds += rollout.busy_s

    def ran_in_vain(self, rollout: Rollout) -> None:
        """Count one that is to run again."""
        self.seconds += rollout.busy_s


class Meter:
    """Counts what nobody else does: over time, and of workers that are gone."""

    def __init__(self, scenario: Scenario, clock: VirtualClock, budget: Budget) -> None:
        self._scenario = scenario
        self._clock = clock
        self._budget = budget
        self._in_flight = 0
        self._in_flight_s = self._seen_at = 0.0
        self._workers_s = self._counted_at = 0.0
        self._gone_loops_s = self._lost_s = 0.0
        self._deaths = 0

    def see(self) -> None:
        """Look how many episodes are in flight. It is called before their number changes."""
        now = self._clock.time()
        self._in_flight_s += (now - self._seen_at) * self._budget.samples
        self._seen_at = now

    def see_workers(self, living: int) -> None:
        """Look how many workers live. It is called before their number changes."""
        now = self._clock.time()
        self._workers_s += (now - self._counted_at) * living
        self._counted_at = now

    def died(self, worker: VirtualWorker) -> None:
        """Take note that *worker* has died."""
        self._deaths += 1
        self._gone_loops_s += worker.loop.busy_s
        self._lost_s += worker.die()

    def read(
        self,
        trainer: Trainer,
        desk: VirtualDesk,
        link: VirtualLink,
        driver: VirtualThread,
        servers: Sequence[InferenceServer],
        workers: Collection[VirtualWorker],
        ended_s: float,
        old_s: float,
    ) -> Reading:
        """Return what there has been by now."""
        self.see()
        self.see_workers(len(workers))
        for server in servers:
            server.look()
        return Reading(
            at_s=self._clock.time(),
            ended=desk.ended,
            trajectories=trainer.trajectories,
            taken_at_s=trainer.taken_at,
            first=trainer.first,
            batches=trainer.batches,
            tokens=sum(server.tokens for server in servers),
            requests_s=sum(server.request_seconds for server in servers),
            in_flight_s=self._in_flight_s,
            driver_s=driver.busy_s,
            delays_s=link.delays_s,
            reports=link.reports,
            loops_s=self._gone_loops_s + sum(one.loop.busy_s for one in workers),
            workers_s=self._workers_s,
            trainer_s=trainer.busy_s(),
            episodes_s=ended_s + self._lost_s,
            old_s=old_s,
            lost_s=self._lost_s,
            deaths=self._deaths,
        )

    def forecast(
        self, begin: Reading, end: Reading, ledger: RolloutLedger, report: StalenessReport
    ) -> Forecast:
        """Return what the time between two readings comes to."""
        scenario, seconds = self._scenario, end.at_s - begin.at_s
        episodes_s = end.episodes_s - begin.episodes_s
        workers_s = end.workers_s - begin.workers_s
        in_flight_s = end.in_flight_s - begin.in_flight_s
        servers = max(1, scenario.servers)
        requests = (end.requests_s - begin.requests_s) / seconds / servers
        tokens_per_s = (end.tokens - begin.tokens) / seconds
        return Forecast(
            workers=scenario.workers,
            episodes_per_s=(end.ended - begin.ended) / seconds,
            trajectories_per_s=_per_s(begin, end),
            tokens_per_s=tokens_per_s,
            batches=end.batches - begin.batches,
            in_flight=in_flight_s / seconds,
            driver_busy=_share(end.driver_s - begin.driver_s, seconds),
            driver_delay_s=(end.delays_s - begin.delays_s) / max(1, end.reports - begin.reports),
            workers_busy=_share(end.loops_s - begin.loops_s, workers_s),
            slots_busy=_share(in_flight_s, scenario.slots * workers_s),
            servers_busy=self._servers_busy(requests, tokens_per_s / servers),
            requests_per_server=requests,
            trainer_busy=_share(end.trainer_s - begin.trainer_s, seconds),
            wasted_old=_share(end.old_s - begin.old_s, episodes_s),
            wasted_lost=_share(end.lost_s - begin.lost_s, episodes_s),
            deaths=end.deaths - begin.deaths,
            ledger=ledger,
            staleness=report,
        )

    def _servers_busy(self, requests: float, tokens_per_s: float) -> float | None:
        scenario, shares = self._scenario, []
        if scenario.server_slots is not None:
            shares.append(requests / scenario.server_slots)
        if scenario.server_tokens_per_s is not None:
            shares.append(tokens_per_s / scenario.server_tokens_per_s)
        return min(1.0, max(shares)) if shares else None


def _per_s(begin: Reading, end: Reading) -> float:
    """Return the rate of what comes in batches, from one to another: a part of a batch is none.

    Where the first came after *begin* it counts from there, and if it was the only one, from the start.
    """
    since_s, before = begin.taken_at_s, begin.trajectories
    if begin.first is None and end.first is not None and end.first[1] < end.trajectories:
        since_s, before = end.first
    passed_s = end.taken_at_s - since_s
    return (end.trajectories - before) / passed_s if passed_s > 0 else 0.0


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0
