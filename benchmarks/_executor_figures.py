"""What is measured of whoever keeps episodes going for a trainer."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterable, Mapping

import uvloop

from _contenders import PATIENCE_S, BareThread
from _executor_contenders import (
    ITEM,
    Plays,
    Producer,
    Queueing,
    Settings,
    Versions,
)

WARM_BATCHES = 3


class Slots:
    """Episodes of lognormal durations, drawn alike for every contender, and what of the slots they use.

    The median of the durations is *median_s*; sigma is 0.8, and none is longer than eight medians. What is
    looked at begins when the first *warm* have ended, and lasts for *seconds*.
    """

    def __init__(self, places: int, warm: int, median_s: float, seconds: float) -> None:
        self._places = places
        self._left = warm
        self._median_s = median_s
        self._seconds = seconds
        self._random = random.Random(20250)
        self._begin: float | None = None
        self._played: list[tuple[float, float]] = []

    async def play(self) -> None:
        """Take a slot for as long as an episode does."""
        begin = time.monotonic()
        seconds = self._median_s * min(8.0, self._random.lognormvariate(0.0, 0.8))
        self._played.append((begin, seconds))
        await asyncio.sleep(seconds)
        self._left -= 1
        if self._left == 0:
            self._begin = time.monotonic()

    def is_over(self) -> bool:
        """Return whether all has been seen."""
        return self._begin is not None and time.monotonic() > self._begin + self._seconds

    def utilisation(self) -> float:
        """Return the share of the slots that was busy.

        Busy is what an episode was to take, from its first step: waking late leaves a slot idle.
        """
        assert self._begin is not None
        begin, end = self._begin, self._begin + self._seconds
        busy = sum(max(0.0, min(end, at + taken) - max(begin, at)) for at, taken in self._played)
        return busy / (self._places * self._seconds)


def slots_used(producer: Producer, places: int, median_s: float, seconds: float) -> float:
    """Return the share of *places* slots that is busy while a trainer takes batch after batch."""
    slots = Slots(places, places // 2, median_s, seconds)
    producer.start(Plays(slots.play), Settings(places, places // 2, staleness=1_000))
    while not slots.is_over():
        producer.batch()
    return slots.utilisation()


def slots_used_by_hand(places: int, median_s: float, seconds: float) -> float:
    """Return the same for so many coroutines that play one episode after the other: the limit."""
    slots, versions = Slots(places, places // 2, median_s, seconds), Versions()
    workflow = Plays(slots.play)

    async def place() -> None:
        while not slots.is_over():
            await workflow.arun_episode(versions, ITEM)

    async def all_places() -> None:
        await asyncio.gather(*(place() for _ in range(places)))

    uvloop.run(all_places())
    return slots.utilisation()


def preparing(producer: Producer, batches: int, size: int) -> Mapping[str, float]:
    """Return what an episode costs in batches of *size*, with a new version after each: CPU, and time."""
    producer.start(Plays(_yield_once), Settings(None, size, staleness=2))
    versions = itertools.count(1)
    _prepare(producer, WARM_BATCHES, size, versions)
    gc.collect()
    begin, cpu = time.perf_counter(), time.process_time()
    _prepare(producer, batches, size, versions)
    episodes = batches * size
    return {
        "cpu": (time.process_time() - cpu) / episodes,
        "time": (time.perf_counter() - begin) / episodes,
    }


def _prepare(producer: Producer, batches: int, size: int, versions: Iterable[int]) -> None:
    for _, version in zip(range(batches), versions, strict=False):
        if len(producer.batch()) != size:
            raise AssertionError("a batch was not whole")
        producer.set_version(version)


async def _yield_once() -> None:
    await asyncio.sleep(0)


class Starts:
    """Episodes that end at once, and when each began."""

    def __init__(self) -> None:
        self.began_at = 0.0
        self.began = threading.Event()

    async def play(self) -> int:
        self.began_at = time.perf_counter()
        self.began.set()
        return 1

    def seconds_since(self, begin: float) -> float:
        """Return how long after *begin* the next one began."""
        if not self.began.wait(PATIENCE_S):
            raise TimeoutError(f"no episode began within {PATIENCE_S} s")
        self.began.clear()
        return self.began_at - begin


ONE_A_VERSION = Settings(None, 1, staleness=0)


def admission(producer: Queueing, times: int, pending: int) -> float:
    """Return the median seconds from a new version to the first step of the episode it lets start.

    *pending* more are waiting behind it.
    """
    starts = Starts()
    producer.start(Plays(starts.play), ONE_A_VERSION)
    producer.queue(times + pending)
    starts.seconds_since(0.0)
    producer.take_one()
    gc.collect()
    taken = []
    for version in range(1, times):
        begin = time.perf_counter()
        producer.set_version(version)
        taken.append(starts.seconds_since(begin))
        producer.take_one()
    return statistics.median(taken)


def admission_by_hand(thread: BareThread, times: int) -> float:
    """Return the same for a coroutine handed to a loop in another thread: what a start costs at least."""
    starts = Starts()
    thread.start()
    thread.value(starts.play)
    starts.seconds_since(0.0)
    gc.collect()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        thread.launch(starts.play, 1)
        taken.append(starts.seconds_since(begin))
        thread.collect(1)
    return statistics.median(taken)
