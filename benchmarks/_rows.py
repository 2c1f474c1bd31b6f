"""The rows of the table: which figures each takes, what is read off them, and what we aim for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import _figures as figures
from _census import OBJECTS_AT_MOST
from _contenders import BareThread, Contender, RawLoop
from _table import Aim, Figure, Reading, Row, ratio

RAW = RawLoop()
BARE_THREAD = BareThread()

BURST_AIM = 1.25 if sys.version_info >= (3, 13) else 1.6  # tasks start eagerly from 3.13


@dataclass(frozen=True)
class Runners:
    ours: Contender
    ours_with_deadline: Contender
    areal: Contender


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    pairs: int = 11
    divisor: int = 1
    """What numbers of tasks and trips are divided by."""
    idle_s: float = 2.0

    def of(self, count: int) -> int:
        return count // self.divisor


FULL = Scale()
QUICK = Scale(pairs=3, divisor=5, idle_s=1.0)


def all_rows(runners: Runners, scale: Scale) -> Iterator[Row]:
    yield _burst(runners, 10_000)  # takes no time, and its ratio to areal depends on the number
    yield _sleeping_cpu(runners, scale.of(10_000))
    yield _trip(runners, scale.of(2_000))
    yield _trip_in_flight(runners, scale.of(2_000), scale.of(10_000))
    yield _trip_against_areal(runners, scale.of(2_000))
    yield _idle_cpu(runners, scale.of(10_000), scale.idle_s)
    yield _wakeup_lag(runners, scale.of(8_000))
    yield _throughput(runners, scale.of(10), scale.of(4_000))
    yield _memory(runners, scale.of(100_000))
    yield _lifetime(runners, scale.of(200))
    yield _growth(runners, scale.of(1_000))


def _burst(runners: Runners, tasks: int) -> Row:
    return Row(
        "burst",
        f"burst of {tasks:,} no-op tasks submitted from another thread, all collected",
        {
            "raw": partial(figures.burst, RAW, tasks),
            "ours": partial(figures.burst, runners.ours, tasks),
            "areal": partial(figures.burst, runners.areal, tasks),
            "threadsafe": partial(figures.burst, BARE_THREAD, tasks),
        },
        (
            ratio("ours", "raw", Aim(BURST_AIM)),
            ratio("areal", "raw"),
            ratio("threadsafe", "raw"),
            ratio("areal", "ours", Aim(5, at_most=False, must=3.5)),
        ),
        more=2,
    )


def _sleeping_cpu(runners: Runners, tasks: int) -> Row:
    return Row(
        "cpu",
        f"CPU of {tasks:,} tasks sleeping 0.5-2 s, whole process",
        {
            "raw": partial(figures.sleeping_cpu, RAW, tasks),
            "ours": partial(figures.sleeping_cpu, runners.ours, tasks),
            "areal": partial(figures.sleeping_cpu, runners.areal, tasks),
        },
        (
            ratio("ours", "raw", Aim(1.35)),
            ratio("areal", "raw"),
            ratio("areal", "ours", Aim(4, at_most=False)),
        ),
    )


def _trip(runners: Runners, trips: int) -> Row:
    return Row(
        "trip",
        "submit -> value round trip, against run_coroutine_threadsafe(...).result()",
        {
            "threadsafe": partial(figures.trip, BARE_THREAD, trips),
            "ours": partial(figures.trip, runners.ours, trips),
            "areal": partial(figures.trip, runners.areal, trips),
        },
        (ratio("ours", "threadsafe", Aim(1.1)), ratio("areal", "threadsafe")),
        unit="us",
        per_unit=1e-6,
        more=3,
    )


def _trip_in_flight(runners: Runners, trips: int, parked: int) -> Row:
    return Row(
        "trip-in-flight",
        f"the same with {parked:,} tasks in flight, against with none",
        {
            "ours": partial(figures.trip, runners.ours, trips),
            "ours among many": partial(figures.trip, runners.ours, trips, parked),
            "areal": partial(figures.trip, runners.areal, trips),
            "areal among many": partial(figures.trip, runners.areal, 8, parked),
        },
        (ratio("ours among many", "ours", Aim(1.15)), ratio("areal among many", "areal")),
        unit="us",
        per_unit=1e-6,
        more=3,
    )


def _trip_against_areal(runners: Runners, trips: int) -> Row:
    return Row(
        "trip-1000",
        "the same with 1,000 tasks in flight, against areal",
        {
            "ours": partial(figures.trip, runners.ours, trips, 1_000),
            "areal": partial(figures.trip, runners.areal, 10, 1_000),
        },
        (ratio("areal", "ours", Aim(500, at_most=False, must=500)),),
        unit="us",
        per_unit=1e-6,
        more=3,
    )


def _idle_cpu(runners: Runners, parked: int, seconds: float) -> Row:
    return Row(
        "idle",
        f"idle CPU with {parked:,} parked tasks, % of a core",
        {
            "ours": partial(figures.idle_cpu, runners.ours, parked, seconds),
            "areal": partial(figures.idle_cpu, runners.areal, parked, seconds),
        },
        (
            Reading("ours, %", lambda values: values["ours"], Aim(0.1)),
            Reading("areal, %", lambda values: values["areal"]),
        ),
        unit="%",
        per_unit=1,
    )


def _wakeup_lag(runners: Runners, tasks: int) -> Row:
    return Row(
        "lag",
        f"wake-up lag p99 with {tasks:,} tasks sleeping 0.5-2 s",
        {
            "raw": partial(figures.wakeup_lag, RAW, tasks),
            "ours": partial(figures.wakeup_lag, runners.ours, tasks),
            "areal": partial(figures.wakeup_lag, runners.areal, tasks),
        },
        (ratio("ours", "raw", Aim(1.5)), ratio("areal", "raw")),
    )


def _throughput(runners: Runners, batches: int, parked: int) -> Row:
    def of(contender: Contender, parked: int = 0) -> Figure:
        return partial(figures.throughput, contender, batches, 2_000, parked)

    return Row(
        "throughput",
        f"short-task throughput, batches of 2,000, with {parked:,} parked, against with none",
        {
            "ours": of(runners.ours),
            "ours among parked": of(runners.ours, parked),
            "areal": of(runners.areal),
            "areal among parked": of(runners.areal, parked),
        },
        (_falls("ours", "ours among parked", Aim(5)), _falls("areal", "areal among parked")),
        unit="tasks/s",
        per_unit=1,
        more=2,
    )


def _falls(alone: str, among: str, aim: Aim | None = None) -> Reading:
    return Reading(f"{alone} falls by, %", lambda values: 100 * (1 - values[among] / values[alone]), aim)


def _memory(runners: Runners, tasks: int) -> Row:
    return Row(
        "memory",
        f"memory per task with {tasks:,} in flight",
        {
            "raw": partial(figures.memory, RAW, tasks),
            "ours": partial(figures.memory, runners.ours, tasks),
            "ours with deadline": partial(figures.memory, runners.ours_with_deadline, tasks),
            "areal": partial(figures.memory, runners.areal, tasks),
        },
        (
            ratio("ours", "raw", Aim(1.3)),
            ratio("ours with deadline", "raw", Aim(1.6)),
            ratio("areal", "raw"),
        ),
        unit="bytes",
        per_unit=1,
    )


def _lifetime(runners: Runners, cycles: int) -> Row:
    return Row(
        "lifetime",
        "initialize + destroy, against a bare thread and loop",
        {
            "bare": partial(figures.lifetime, BARE_THREAD, cycles),
            "ours": partial(figures.lifetime, runners.ours, cycles),
            "areal": partial(figures.lifetime, runners.areal, cycles),
        },
        (ratio("ours", "bare", Aim(2)), ratio("areal", "bare")),
    )


def _growth(runners: Runners, cycles: int) -> Row:
    return Row(
        "growth",
        f"what {cycles:,} cycles of initialize + destroy leave behind, the first tenth aside",
        {"ours": partial(figures.growth, runners.ours, cycles)},
        (Reading("ours, objects", lambda values: values["ours"], Aim(OBJECTS_AT_MOST)),),
        unit="objects",
        per_unit=1,
    )
