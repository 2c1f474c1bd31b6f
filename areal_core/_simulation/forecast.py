"""What comes of a simulated run, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

from areal_core._executor.books import RolloutLedger
from areal_core._executor.report import StalenessReport
from areal_core._field_docs import documented

_FULL = 0.85
"""From which share on something is said to be the limit."""


@documented
@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What comes of a run. Rates and shares are of the time that was measured."""

    workers: int
    """How many workers were wanted."""

    episodes_per_s: float
    """Episodes that came back from workers, per second; all members of groups count."""

    trajectories_per_s: float
    """Trajectories that the trainer was given, per second, from the end of a batch to the end of another."""

    tokens_per_s: float
    """Tokens that were generated, per second, also for what then came to nothing."""

    batches: int
    """How many the trainer trained on."""

    in_flight: float
    """Episodes that were under way, on average, with those that waited for room at a worker."""

    driver_busy: float
    """Share of the time that the driver's thread worked. At 1 it is saturated: what comes to it waits."""

    driver_delay_s: float
    """Seconds that a worker's report waited for the driver, on average."""

    workers_busy: float
    """Share of the time that a worker's loop worked, on average of all workers."""

    slots_busy: float
    """Episodes that were under way as a share of all slots of workers; at 1 the rest waits for room."""

    servers_busy: float | None
    """What servers generated as a share of the most they can, or requests that they worked on as a share of
    their slots, whichever is more; None: they have no limit."""

    requests_per_server: float
    """Requests that a server worked on, on average."""

    trainer_busy: float
    """Share of the time that the trainer trained or updated weights; the rest it waited for a batch."""

    wasted_old: float
    """Seconds of episodes that were too old in the end, as a share of all seconds of episodes."""

    wasted_lost: float
    """The same for those that were lost with their workers."""

    deaths: int
    """How many workers died, or were taken for dead."""

    ledger: RolloutLedger
    """Where all rollouts are at the end, of the whole run."""

    staleness: StalenessReport
    """How stale what was trained on is, of the whole run."""

    @property
    def bound_by(self) -> str:
        """What limits the rate: the first of these that is as good as always busy."""
        for name, share in (
            ("the driver", self.driver_busy),
            ("the workers' loops", self.workers_busy),
            ("the servers", self.servers_busy or 0.0),
            ("the trainer", self.trainer_busy),
            ("the workers' slots", self.slots_busy),
        ):
            if share >= _FULL:
                return name
        return "how many may be in flight"

    def __str__(self) -> str:
        return "\n".join(f"{name:<28}{text}" for name, text in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        report, ledger = self.staleness, self.ledger
        ends = [
            f"{getattr(ledger, name)} {name.replace('_', ' ')}"
            for name in ("accepted", "rejected", "failed", "stale")
            if getattr(ledger, name)
        ]
        tokens = report.tokens_masked + report.tokens_trained
        servers = "without a limit" if self.servers_busy is None else f"busy {share(self.servers_busy)}"
        return [
            ("bound by", self.bound_by),
            ("trajectories", f"{rate(self.trajectories_per_s)}, {self.batches} batches"),
            ("episodes", f"{rate(self.episodes_per_s)}, {self.in_flight:,.0f} in flight on average"),
            ("tokens", rate(self.tokens_per_s)),
            ("driver", f"busy {share(self.driver_busy)}; reports wait {self.driver_delay_s * 1e3:,.1f} ms"),
            (
                f"{self.workers} worker{'s' * (self.workers != 1)}",
                f"loops busy {share(self.workers_busy)}, slots {share(self.slots_busy)}; {self.deaths} died",
            ),
            ("servers", f"{servers}, {self.requests_per_server:,.1f} requests each"),
            ("trainer", f"busy {share(self.trainer_busy)}"),
            ("staleness", f"{report.staleness_mean:.2f} on average, {report.staleness_max} at most"),
            ("wasted", f"{share(self.wasted_old)} too old, {share(self.wasted_lost)} lost with workers"),
            ("masked", f"{share(report.tokens_masked / max(1, tokens))} of {tokens:,} tokens"),
            ("rollouts", f"{ledger.submitted} submitted, {', '.join(ends) or 'none ended'}"),
        ]


def rate(per_s: float) -> str:
    """Return a rate for people."""
    return f"{per_s:,.0f} per s" if per_s >= 100 else f"{per_s:.3g} per s"


def share(of_one: float) -> str:
    """Return a share for people."""
    return f"{100 * of_one:.0f} %" if of_one >= 0.095 or not of_one else f"{100 * of_one:.2g} %"
