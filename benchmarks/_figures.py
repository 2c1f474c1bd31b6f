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
from pathlib import Path

from _census import cycle_twice
from _contenders import Contender, Work

WARM_CALLS = 64
TRIP_BLOCK = 100

HOUR_S = 3_600.0


async def nothing() -> int:
    return 1


async def short() -> int:
    await asyncio.sleep(0)
    return 1


class Naps:
    """Work that sleeps 0.5 to 2 s, drawn alike for every contender, and notes how late it woke."""

    def __init__(self) -> None:
        self._random = random.Random(20250)
        self.lags_s: list[float] = []

    async def nap(self) -> int:
        seconds = self._random.uniform(0.5, 2.0)
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


def burst(contender: Contender, tasks: int) -> float:
    """Return the seconds from the first submit of *tasks* no-op tasks to the last value."""
    contender.start()
    _run(contender, nothing, tasks)  # the heap has its size then, and the code is specialized
    gc.collect()
    begin = time.perf_counter()
    _run(contender, nothing, tasks)
    return time.perf_counter() - begin


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
    return sorted(naps.lags_s)[math.ceil(0.99 * tasks) - 1]


def memory(contender: Contender, tasks: int) -> float:
    """Return the resident bytes that each of *tasks* parked tasks takes."""
    contender.start()
    _run(contender, nothing, WARM_CALLS)
    gc.collect()
    before = _resident_bytes()
    _park(contender, tasks)
    return (_resident_bytes() - before) / tasks


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
    values = contender.collect(tasks)
    if values != [1] * tasks:
        raise AssertionError(f"{tasks - values.count(1)} of {tasks} tasks gave a wrong value")


def _park(contender: Contender, tasks: int) -> None:
    if tasks:
        parking = Parking(tasks)
        contender.launch(parking.park, tasks)
        contender.settle(parking.full)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # no /proc: macOS
        command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
        return 1024 * int(subprocess.run(command, capture_output=True, check=True).stdout)
