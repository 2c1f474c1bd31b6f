"""What is measured: each function takes a contender, measures one figure with it, and returns a number.

A figure is taken in a process of its own (`_children`), which ends without clearing up.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _census import cycle_twice
from _contenders import HOUR_S, Contender, Work

WARM_CALLS = 64
TRIP_BLOCK = 100


async def nothing() -> int:
    return 1


async def short() -> int:
    await asyncio.sleep(0)
    return 1


class Naps:
    """Work that sleeps 0.5 to 2 s, drawn alike for every contender, and notes how late it woke."""

    def __init__(self, shortest_s: float = 0.5, longest_s: float = 2.0) -> None:
        self._random = random.Random(20250)
        self._range_s = shortest_s, longest_s
        self.lags_s: list[float] = []

    def lag_p99(self) -> float:
        """Return the 99th percentile, in seconds, of how late they woke."""
        return sorted(self.lags_s)[math.ceil(0.99 * len(self.lags_s)) - 1]

    async def nap(self) -> int:
        seconds = self._random.uniform(*self._range_s)
        due = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        self.lags_s.append(time.monotonic() - due)
        return 1


class Parking:
    """Work that stays in flight, on a timer. ``full`` is set when all *places* are taken."""

    def __init__(self, places: int) -> None:
        self.full = threading.Event()
        self._free = places  # only the loop's thread counts

    async def park(self) -> None:
        self._free -= 1
        if not self._free:
            self.full.set()
        await asyncio.sleep(HOUR_S)


class Crowd:
    """Work that stays in flight until it is let go. ``full`` is set when all *places* are taken."""

    def __init__(self, places: int) -> None:
        self.full = threading.Event()
        self._free = places
        self._gate = asyncio.Event()

    async def stand(self) -> int:
        self._free -= 1
        if not self._free:
            self.full.set()
        await self._gate.wait()
        return 1

    async def let_go(self) -> int:
        self._gate.set()
        return 1


def burst(contender: Contender, tasks: int) -> float:
    """Return the seconds from the first submit of *tasks* no-op tasks to the last value."""
    contender.start()
    _run(contender, nothing, tasks)  # the heap has its size then, and the code is specialized
    gc.collect()
    begin = time.perf_counter()
    _run(contender, nothing, tasks)
    return time.perf_counter() - begin


def episodes(contender: Contender, count: int, work: Work) -> float:
    """Return the seconds that each of *count* calls of *work* takes, handed over, ended and collected."""
    contender.start()
    _run(contender, work, count)
    gc.collect()
    begin = time.perf_counter()
    _run(contender, work, count)
    return (time.perf_counter() - begin) / count


def throughput(contender: Contender, batches: int, tasks: int, parked: int = 0) -> float:
    """Return how many tasks that yield once end per second, handed over and collected in batches."""
    contender.start()
    _park(contender, parked)
    _run(contender, short, tasks)
    gc.collect()
    begin = time.perf_counter()
    for _ in range(batches):
        _run(contender, short, tasks)
    return batches * tasks / (time.perf_counter() - begin)


def sleeping_cpu(contender: Contender, tasks: int) -> float:
    """Return the CPU seconds, all threads together, of *tasks* tasks that sleep 0.5 to 2 s."""
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    begin = time.process_time()
    _run(contender, Naps().nap, tasks)
    return time.process_time() - begin


def trip(contender: Contender, trips: int, parked: int = 0) -> float:
    """Return the seconds from submit to value of one task at a time, *parked* others in flight.

    The median of the means of `TRIP_BLOCK` trips each: one that lost the processor is a thousand others long.
    """
    contender.start()
    _park(contender, parked)
    block = min(trips, TRIP_BLOCK)
    _mean_trip(contender, max(2, block // 4))
    gc.collect()
    return statistics.median(_mean_trip(contender, block) for _ in range(trips // block))


def _mean_trip(contender: Contender, trips: int) -> float:
    begin = time.perf_counter()
    for _ in range(trips):
        contender.value(nothing)
    return (time.perf_counter() - begin) / trips


def idle_cpu(contender: Contender, parked: int, seconds: float) -> float:
    """Return the percentage of a core that *parked* tasks cost in *seconds* in which nothing happens."""
    contender.start()
    _park(contender, parked)
    contender.value(nothing)
    gc.collect()
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return 100 * (time.process_time() - cpu) / (time.perf_counter() - begin)


def wakeup_lag(contender: Contender, tasks: int) -> float:
    """Return the 99th percentile, in seconds, of how late *tasks* sleeping tasks wake."""
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    naps = Naps()
    _run(contender, naps.nap, tasks)
    return naps.lag_p99()


def memory(contender: Contender, tasks: int) -> float:
    """Return the resident bytes that each of *tasks* parked tasks takes."""
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    before = resident_bytes()
    _park(contender, tasks)
    return (resident_bytes() - before) / tasks


def crowd(contender: Contender, tasks: int, naps: int) -> Mapping[str, float]:
    """Have *tasks* tasks in flight at once: hand them over, see them stand, let them all end, collect them.

    Return the seconds per task of handing over and of ending, the resident bytes of each, and how late the
    latest of a hundred of *naps* others wakes meanwhile.
    """
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    people, before, begin = Crowd(tasks), resident_bytes(), time.perf_counter()
    contender.launch(people.stand, tasks)
    contender.settle(people.full)
    standing = time.perf_counter()
    taken = resident_bytes() - before
    sleepers = Naps(0.2, 0.8)
    _run(contender, sleepers.nap, naps)
    parting = time.perf_counter()
    contender.value(people.let_go)
    _check(contender.collect(tasks), tasks)
    ended = time.perf_counter()
    return {
        "submit": (standing - begin) / tasks,
        "end": (ended - parting) / tasks,
        "memory": taken / tasks,
        "lag": sleepers.lag_p99(),
    }


def in_flight(contender: Contender, parked: int, seconds: float) -> Mapping[str, float]:
    """Return what one task costs among *parked* others, and what those cost by being there.

    In seconds from submit to value, seconds of lag when it wakes, percentage of a core when nothing happens
    for *seconds*, and resident bytes.
    """
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    before = resident_bytes()
    _park(contender, parked)
    memory_taken = resident_bytes() - before
    trips = _trips_within(contender, seconds)
    sleepers = Naps(0.1, seconds)
    _run(contender, sleepers.nap, 200)
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    idle = 100 * (time.process_time() - cpu) / (time.perf_counter() - begin)
    measured = {"trip": statistics.median(trips), "lag": sleepers.lag_p99(), "idle": idle}
    # Of few it says how large a page is.
    return measured | ({"memory": memory_taken / parked} if parked >= 1_000 else {})


def bursts_of(contender: Contender, tasks: int, seconds: float, work: Work = nothing) -> Mapping[str, float]:
    """Return the seconds that a task costs in bursts of *tasks*, one after the other, for *seconds* or so."""
    contender.start()
    _run(contender, work, min(tasks, 10_000))
    gc.collect()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        begin = time.perf_counter()
        _run(contender, work, tasks)
        taken.append((time.perf_counter() - begin) / tasks)
    return {"burst": statistics.median(taken)}


def _trips_within(contender: Contender, seconds: float) -> list[float]:
    trips: list[float] = []
    end = time.perf_counter() + seconds
    while len(trips) < 5 or (time.perf_counter() < end and len(trips) < 2_000):
        trips.append(_mean_trip(contender, 1))
    return trips


def peer(contender: Contender, tasks: int, trips: int, parked: int) -> Mapping[str, float]:
    """Return what a task costs in a burst, one at a time, and one at a time among *parked* others (0: none).

    In seconds. The contender is stopped: it may have processes of its own.
    """
    contender.start()
    try:
        _run(contender, nothing, tasks)
        gc.collect()
        begin = time.perf_counter()
        _run(contender, nothing, tasks)
        measured = {"burst": (time.perf_counter() - begin) / tasks, "trip": _median_trip(contender, trips)}
        if parked:
            _park(contender, parked)
            measured["among"] = _median_trip(contender, max(5, trips // 20))
        return measured
    finally:
        contender.stop()


def _median_trip(contender: Contender, trips: int) -> float:
    return statistics.median(_mean_trip(contender, 1) for _ in range(trips))


def lifetime(contender: Contender, cycles: int) -> float:
    """Return the seconds that starting and stopping take."""
    for _ in range(10):
        contender.start()
        contender.stop()
    gc.collect()
    begin = time.perf_counter()
    for _ in range(cycles):
        contender.start()
        contender.stop()
    return (time.perf_counter() - begin) / cycles


def growth(contender: Contender, cycles: int) -> float:
    """Return by how much objects, descriptors and threads together grow from a tenth of *cycles* to all."""

    def cycle() -> None:
        contender.start()
        contender.stop()

    before, after = cycle_twice(cycle, cycles // 10, cycles)
    return after.things - before.things


def _run(contender: Contender, work: Work, tasks: int) -> None:
    contender.launch(work, tasks)
    _check(contender.collect(tasks), tasks)


def _check(values: list[Any], tasks: int) -> None:
    if values != [1] * tasks:
        raise AssertionError(f"{tasks - values.count(1)} of {tasks} tasks gave a wrong value")


def _park(contender: Contender, tasks: int) -> None:
    if tasks:
        parking = Parking(tasks)
        contender.launch(parking.park, tasks)
        contender.settle(parking.full)


def resident_bytes() -> int:
    """Return the memory that this process has resident."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # no /proc: macOS
        command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
        return 1024 * int(subprocess.run(command, capture_output=True, check=True).stdout)
