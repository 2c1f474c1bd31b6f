"""The rows of the runner: which figures each takes, what is read off them, and what we aim for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import _figures as figures
from _census import OBJECTS_AT_MOST
from _contenders import BARE_THREAD, OURS, OURS_WITH_DEADLINE, RAW, Contender, areal_runner
from _scale import COUNTED, LONGER, PROFILED_S, Scale, figure
from _table import (
    BYTES,
    MICROSECONDS,
    PERCENT,
    Absent,
    Aim,
    Figure,
    Reading,
    Row,
    Unit,
    part,
    plain,
    ratio,
)

AREAL = frozenset(("areal",))

BURST_AIM = 1.25 if sys.version_info >= (3, 13) else 1.6  # tasks start eagerly from 3.13


def rows(scale: Scale, _url: str) -> Iterator[Row]:
    """Yield the rows; the first five are those whose aims may be missed by little only."""
    areal = areal_runner()
    yield _burst(areal, 10_000)  # takes no time, and its ratio to areal depends on the number
    yield _sleeping_cpu(areal, scale.of(10_000))
    yield _trip(areal, scale.of(2_000))
    yield _trip_in_flight(areal, scale.of(2_000), scale.of(10_000))
    yield _idle_cpu(areal, scale.of(10_000), scale.seconds)
    yield _trip_against_areal(areal, scale.of(2_000))
    yield _wakeup_lag(areal, scale.of(8_000))
    yield _throughput(areal, scale.of(10), scale.of(4_000))
    yield _memory(areal, scale.of(100_000))
    yield _crowd(scale.of(100_000), scale.of(2_000))
    yield _lifetime(areal, scale.of(200))
    yield _growth(scale.of(1_000))


def _burst(areal: Contender | Absent, tasks: int) -> Row:
    return Row(
        "burst",
        f"burst of {tasks:,} no-op tasks submitted from another thread, all collected",
        {
            "raw": figure(figures.burst, RAW, tasks),
            "ours": figure(figures.burst, OURS, tasks),
            "areal": figure(figures.burst, areal, tasks),
            "threadsafe": figure(figures.burst, BARE_THREAD, tasks),
        },
        (
            ratio("ours", "raw", Aim(BURST_AIM)),
            ratio("areal", "raw"),
            ratio("threadsafe", "raw"),
            ratio("areal", "ours", Aim(5, at_most=False, must=3.5)),
        ),
        rounds=11,
        profiles={
            name: figure(figures.bursts_of, contender, tasks, PROFILED_S)
            for name, contender in (("raw", RAW), ("ours", OURS), ("areal", areal))
        },
    )


def _sleeping_cpu(areal: Contender | Absent, tasks: int) -> Row:
    return Row(
        "cpu",
        f"CPU of {tasks:,} tasks sleeping 0.5-2 s, whole process",
        {
            "raw": figure(figures.sleeping_cpu, RAW, tasks),
            "ours": figure(figures.sleeping_cpu, OURS, tasks),
            "areal": figure(figures.sleeping_cpu, areal, tasks),
        },
        (
            ratio("ours", "raw", Aim(1.35)),
            ratio("areal", "raw"),
            ratio("areal", "ours", Aim(4, at_most=False)),
        ),
        rounds=7,
    )


def _trip(areal: Contender | Absent, trips: int) -> Row:
    return Row(
        "trip",
        "submit -> value round trip, against run_coroutine_threadsafe(...).result()",
        {
            "threadsafe": figure(figures.trip, BARE_THREAD, trips),
            "ours": figure(figures.trip, OURS, trips),
            "areal": figure(figures.trip, areal, trips),
        },
        (ratio("ours", "threadsafe", Aim(1.1)), ratio("areal", "threadsafe")),
        MICROSECONDS,
        rounds=11,
        profiles={
            "threadsafe": partial(figures.trip, BARE_THREAD, LONGER * trips),
            "ours": partial(figures.trip, OURS, LONGER * trips),
        },
    )


def _trip_in_flight(areal: Contender | Absent, trips: int, parked: int) -> Row:
    return Row(
        "trip-in-flight",
        f"the same with {parked:,} tasks in flight, against with none",
        {
            "ours": figure(figures.trip, OURS, trips),
            "ours among many": figure(figures.trip, OURS, trips, parked),
            "areal": figure(figures.trip, areal, trips),
            "areal among many": figure(figures.trip, areal, 8, parked),
        },
        (ratio("ours among many", "ours", Aim(1.15)), ratio("areal among many", "areal")),
        MICROSECONDS,
        rounds=11,
        seldom=frozenset(("areal", "areal among many")),
        profiles={
            "ours": partial(figures.trip, OURS, LONGER * trips),
            "ours among many": partial(figures.trip, OURS, LONGER * trips, parked),
        },
    )


def _idle_cpu(areal: Contender | Absent, parked: int, seconds: float) -> Row:
    return Row(
        "idle",
        f"idle CPU with {parked:,} parked tasks, % of a core",
        {
            "ours": figure(figures.idle_cpu, OURS, parked, seconds),
            "areal": figure(figures.idle_cpu, areal, parked, seconds),
        },
        (plain("ours", Aim(0.1), label="ours, %"), plain("areal", label="areal, %")),
        PERCENT,
        seldom=AREAL,
    )


def _trip_against_areal(areal: Contender | Absent, trips: int) -> Row:
    return Row(
        "trip-1000",
        "submit -> value round trip with 1,000 tasks in flight, against areal",
        {
            "ours": figure(figures.trip, OURS, trips, 1_000),
            "areal": figure(figures.trip, areal, 10, 1_000),
        },
        (ratio("areal", "ours", Aim(300, at_most=False, must=100)),),
        MICROSECONDS,
        rounds=11,
    )


def _wakeup_lag(areal: Contender | Absent, tasks: int) -> Row:
    return Row(
        "lag",
        f"wake-up lag p99 with {tasks:,} tasks sleeping 0.5-2 s",
        {
            "raw": figure(figures.wakeup_lag, RAW, tasks),
            "ours": figure(figures.wakeup_lag, OURS, tasks),
            "areal": figure(figures.wakeup_lag, areal, tasks),
        },
        (ratio("ours", "raw", Aim(1.5)), ratio("areal", "raw")),
        seldom=AREAL,
    )


def _throughput(areal: Contender | Absent, batches: int, parked: int) -> Row:
    def of(contender: Contender | Absent, parked: int = 0) -> Figure | Absent:
        return figure(figures.throughput, contender, batches, 2_000, parked)

    return Row(
        "throughput",
        f"short-task throughput, batches of 2,000, with {parked:,} parked, against with none",
        {
            "ours": of(OURS),
            "ours among parked": of(OURS, parked),
            "areal": of(areal),
            "areal among parked": of(areal, parked),
        },
        (_falls("ours", "ours among parked", Aim(5)), _falls("areal", "areal among parked")),
        Unit("tasks/s", is_rate=True),
        rounds=11,
        seldom=frozenset(("areal", "areal among parked")),
        profiles={
            "ours": partial(figures.throughput, OURS, LONGER * batches, 2_000),
            "ours among parked": partial(figures.throughput, OURS, LONGER * batches, 2_000, parked),
        },
    )


def _falls(alone: str, among: str, aim: Aim | None = None) -> Reading:
    return Reading(
        f"{alone} falls by, %", lambda values: 100 * (1 - values[among] / values[alone]), aim, (among, alone)
    )


def _memory(areal: Contender | Absent, tasks: int) -> Row:
    return Row(
        "memory",
        f"memory per task with {tasks:,} in flight",
        {
            "raw": figure(figures.memory, RAW, tasks),
            "ours": figure(figures.memory, OURS, tasks),
            "ours with deadline": figure(figures.memory, OURS_WITH_DEADLINE, tasks),
            "areal": figure(figures.memory, areal, tasks),
        },
        (
            ratio("ours", "raw", Aim(1.3)),
            ratio("ours with deadline", "raw", Aim(1.6)),
            ratio("areal", "raw"),
        ),
        BYTES,
        seldom=AREAL,
    )


def _crowd(tasks: int, naps: int) -> Row:
    return Row(
        "crowd",
        f"{tasks:,} tasks in flight in one runner: all submitted, all waiting, all ended, all collected",
        {
            "raw": figure(figures.crowd, RAW, tasks, naps),
            "ours": figure(figures.crowd, OURS, tasks, naps),
        },
        (
            ratio("ours", "raw", of="submit"),
            ratio("ours", "raw", of="end"),
            ratio("ours", "raw", of="memory"),
            ratio("ours", "raw", of="lag"),
            plain(part("ours", "lag"), label="ours, lag p99, ms", scale=1e-3),
            plain(part("ours", "memory"), label="ours, bytes per task"),
        ),
        MICROSECONDS,
        {"memory": BYTES},
    )


def _lifetime(areal: Contender | Absent, cycles: int) -> Row:
    return Row(
        "lifetime",
        "initialize + destroy, against a bare thread and loop",
        {
            "bare": figure(figures.lifetime, BARE_THREAD, cycles),
            "ours": figure(figures.lifetime, OURS, cycles),
            "areal": figure(figures.lifetime, areal, cycles),
        },
        (ratio("ours", "bare", Aim(2)), ratio("areal", "bare")),
        rounds=11,
        profiles={
            "bare": partial(figures.lifetime, BARE_THREAD, LONGER * cycles),
            "ours": partial(figures.lifetime, OURS, LONGER * cycles),
        },
    )


def _growth(cycles: int) -> Row:
    return Row(
        "growth",
        f"what {cycles:,} cycles of initialize + destroy leave behind, the first tenth aside",
        {"ours": figure(figures.growth, OURS, cycles)},
        (plain("ours", Aim(OBJECTS_AT_MOST), label="ours, objects"),),
        Unit("objects"),
        rounds=COUNTED,
    )
