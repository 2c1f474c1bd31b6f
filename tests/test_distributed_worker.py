"""The calls of a worker, in this process: what its engine does to them, and what its end does."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from areal_core._distributed import worker as module
from areal_core._distributed.leases import Report
from areal_core._distributed.wire import Orders, encode, load_error, unship
from areal_core._distributed.worker import Setup, Worker
from areal_core._executor.rollout import Plan
from areal_core._runner.lifecycle import life_of
from executor_tools import WAIT_S, Engine, trajectory_of
from far_rollouts import FarEngine
from floors import CALLING, trajectory_in, workers_here
from logged import LogLines


class Driver:
    """A worker, and what a driver says to it. What is sent stands for an object that is here."""

    def __init__(self, engine: Engine, loop_factory: Callable[[], Any]) -> None:
        self._sent: list[Any] = [Setup(lambda: engine, 2, False, False, None, 0.1, loop_factory)]
        self._numbers = itertools.count(1)
        self.before_reading: Callable[[], Any] = lambda: None
        """Called before each thing that is read."""
        self.worker = Worker(b"0", self._loads, self._dumps)
        assert self.worker.begin() is None

    def give(self, *, version: int = 0, holds: bool = False) -> int:
        """Have an episode played whose trajectory is the version of the engine; return its parcel."""
        number = next(self._numbers)
        orders = Orders(number, version, False, holds)
        orders.plans = {number: self._dumps(Plan(CALLING, None, 1, False, False))}
        head = self._dumps((number, number, None, version, self._play))
        orders.give = [(number, head, [0])]
        self.worker.give(encode(orders))
        return number

    def order(self, version: int, **orders: Any) -> None:
        """Have something else done."""
        self.worker.give(encode(Orders(next(self._numbers), version, False, False, **orders)))

    def report(self) -> Report:
        """Return what the worker has to tell."""
        return unship(self.worker.take(WAIT_S), self._loads)

    def take(self) -> list[int]:
        """Return the next values."""
        report = unship(self.worker.take(WAIT_S), self._loads)
        return [int(trajectory_in(one)["input_ids"][0, 0]) for one in report.ended]

    async def _play(self, place: Any) -> Any:
        return trajectory_of(Worker.engine.get_version())

    def call(self, async_fn: Any, *args: Any, timeout: float | None = None) -> Any:
        """Return, or raise, what comes of a call on the worker's loop."""
        went_well, value = self.worker.run(self._dumps((async_fn, args)), next(self._numbers), timeout)
        if went_well:
            return self._loads(value)
        raise load_error(value, self._loads)

    def _dumps(self, thing: Any) -> bytes:
        self._sent.append(thing)
        return str(len(self._sent) - 1).encode()

    def _loads(self, data: bytes) -> Any:
        self.before_reading()
        return self._sent[int(data)]


class Odd(FarEngine):
    """Raises what it is told to when it is told a version that is not 0."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.tries = 0

    def set_version(self, version: int) -> None:
        self.tries += 1
        raise self.error


class Blocked(FarEngine):
    """Does not return from ``set_version`` before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begins, self.may_go = threading.Event(), threading.Event()

    def set_version(self, version: int) -> None:
        self.begins.set()
        self.may_go.wait(WAIT_S)
        super().set_version(version)


@pytest.fixture
def drive(loop_factory: Callable[[], Any]) -> Iterator[Callable[[Engine], Driver]]:
    """Make workers, and stop them."""
    with workers_here() as made:

        def make(engine: Engine) -> Driver:
            driver = Driver(engine, loop_factory)
            made.append(driver.worker)
            return driver

        yield make


@pytest.mark.parametrize("has_process", [False, True])
def test_only_a_worker_with_a_process_of_its_own_spares_the_garbage_collector(
    loop_factory: Callable[[], Any], has_process: bool
) -> None:
    frozen: list[int] = []

    class Looking(FarEngine):
        def __init__(self) -> None:
            super().__init__()
            frozen.append(gc.get_freeze_count())

    setup = pickle.dumps(None)
    made = Setup(Looking, 2, False, False, None, 0.1, loop_factory)
    known = gc.get_freeze_count()
    try:
        with workers_here() as workers:
            workers.append(Worker(setup, lambda _: made, pickle.dumps))
            assert workers[0].begin(has_process) is None
            assert (frozen[0] > known) is has_process, "before the engine is made, which may go again"
    finally:
        if has_process:
            gc.unfreeze()


def test_what_ended_before_the_end_of_a_worker_is_told_of_first(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    driver.give()
    driver.give()
    while len(driver.worker._out._things) < 2:
        driver.worker._runner.run(asyncio.sleep, 0)
    driver.worker.stop(5.0)
    assert driver.take() == [0, 0]
    with pytest.raises(RuntimeError, match="the loop of this worker has ended"):
        driver.report()


def test_what_comes_after_the_stop_of_a_worker_does_nothing(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    driver.give()
    assert driver.take() == [0]

    driver.worker.stop(5.0)
    driver.give(version=1)

    with pytest.raises(RuntimeError, match=r"^the loop of this worker has ended: .*RunnerStoppedError: "):
        driver.take()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3)], ids=repr)
def test_an_engine_that_raises_as_it_is_told_costs_a_line_and_nothing_else(
    drive: Callable[[Engine], Driver], log_lines: LogLines, error: BaseException
) -> None:
    engine = Odd(error)
    driver = drive(engine)

    driver.give(version=1, holds=True)

    assert driver.take() == [0] and engine.held
    line = log_lines.wait_for("engine_took_no_news")
    assert (line.level, line.error) == ("error", error) and "method=set_version" in line.message


def test_a_line_that_cannot_be_logged_costs_no_rollout(drive: Callable[[Engine], Driver]) -> None:
    driver, logger = drive(Odd(ValueError("no"))), logging.getLogger("areal_core")

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError(record.name)

    logger.addFilter(refuse)
    try:
        driver.give(version=1)
        assert driver.take() == [0]
        driver.give(version=2)
        assert driver.take() == [0]
    finally:
        logger.removeFilter(refuse)


def test_what_does_not_return_from_being_read_is_told_of_as_what_does_not_go_on(
    drive: Callable[[Engine], Driver],
) -> None:
    driver = drive(FarEngine())
    may_go = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        driver.before_reading = may_go.wait
        giving = pool.submit(driver.give)
        try:
            report, stalled, deadline = Report(), [0.0], time.monotonic() + WAIT_S
            while not report.stages:
                assert time.monotonic() < deadline, "it is not told of"
                report = unship(driver.worker.take(0.01), driver._loads)
                stalled.append(report.stalled_s)
            assert stalled == sorted(stalled)
            ((parcel, place, stage),) = report.stages
            assert (parcel, place, stage[0]) == (1, 0, "being unpickled at its worker")
            assert stage[2] == pytest.approx(report.stalled_s)
        finally:
            may_go.set()
        assert giving.result(WAIT_S) == 1
    assert driver.take() == [0]
    report = unship(driver.worker.take(0.0), driver._loads)
    assert not report.stages


def test_an_error_that_cannot_be_asked_for_notes_is_the_error_of_its_call(
    drive: Callable[[Engine], Driver],
) -> None:
    class ApiError(Exception):
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    async def ask() -> None:
        raise ApiError("busy")

    with pytest.raises(ApiError) as raised:  # no match: that asks for notes
        drive(FarEngine()).call(ask)
    assert str(raised.value) == "busy"


def test_an_engine_that_does_not_return_holds_up_neither_the_sign_of_life_nor_the_stop(
    drive: Callable[[Engine], Driver],
) -> None:
    engine = Blocked()
    driver = drive(engine)
    try:
        driver.give(version=1)
        assert engine.begins.wait(WAIT_S)
        first, second = (unship(driver.worker.take(0.0), driver._loads).stalled_s for _ in range(2))
        assert 0.0 < first < second, "it is told of as what does not go on"
        driver.worker.stop(5.0)
    finally:
        engine.may_go.set()


def test_what_waits_for_an_engine_that_does_not_return_can_be_cancelled_handed_back_and_played_then(
    drive: Callable[[Engine], Driver],
) -> None:
    engine = Blocked()
    driver = drive(engine)
    driver.give()
    assert driver.take() == [0]
    try:
        cancelled, returned = driver.give(version=1), driver.give(version=1)
        assert engine.begins.wait(WAIT_S)
        driver.order(1, cancel=[(cancelled, 0)])
        (ended,) = driver.report().ended
        assert ended.parcel == cancelled and isinstance(ended.error, asyncio.CancelledError)
        driver.order(1, takes_back=True)
        assert driver.report().returned == [(returned, 0)]
        driver.give(version=1)
        driver.give(version=2)
        assert not unship(driver.worker.take(0.0), driver._loads).ended
    finally:
        engine.may_go.set()
    values: list[int] = []
    while len(values) < 2:
        values += driver.take()
    assert values in ([1, 2], [2, 2]), "none of a version before the one it was to be played with"


def test_an_engine_is_told_again_what_it_did_not_take_and_nothing_twice_that_it_took(
    drive: Callable[[Engine], Driver],
) -> None:
    engine = Odd(ValueError("no"))
    driver = drive(engine)
    for _ in range(3):
        driver.give(version=1)
        driver.take()
    assert engine.tries == 3
    told: list[bool] = []
    plain = FarEngine()
    plain.hold_generation = told.append  # type: ignore[method-assign,assignment]
    driver = drive(plain)
    for _ in range(3):
        driver.give(version=1)
        driver.take()
    assert told == [False]


def test_an_engine_that_returned_is_told_of_no_more(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    driver.give(version=1)
    assert driver.take() == [1]
    assert driver.worker._news.telling_s() == 0.0


def test_a_call_that_outlives_the_patience_of_its_caller_is_cancelled(
    drive: Callable[[Engine], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LATE_S", 0.01)
    driver = drive(FarEngine())
    ended: list[str] = []

    async def stay() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cancelled")

    with pytest.raises(TimeoutError):
        driver.call(stay, timeout=0.02)
    assert ended == ["cancelled"]


def test_a_call_that_nobody_waits_for_is_cancelled_even_before_it_began(
    drive: Callable[[Engine], Driver],
) -> None:
    driver, ended, runs = drive(FarEngine()), [], threading.Event()

    async def stay(number: int) -> None:
        try:
            runs.set()
            await asyncio.sleep(3600)
        finally:
            ended.append(number)

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(driver.worker.run, driver._dumps((stay, (1,))), 1)
        assert runs.wait(WAIT_S)
        driver.worker.end_call(2)
        driver.worker.end_call(1)
        went_well, dumped = calling.result(WAIT_S)
    assert not went_well and isinstance(load_error(dumped, driver._loads), asyncio.CancelledError)
    went_well, dumped = driver.worker.run(driver._dumps((stay, (2,))), 2)
    assert not went_well and isinstance(load_error(dumped, driver._loads), asyncio.CancelledError)
    assert ended == [1] and not driver.worker._calls and not driver.worker._ended_calls


def test_a_worker_whose_loop_died_says_why(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    life_of(driver.worker._runner).thread.post(_divide_by_zero)
    with pytest.raises(RuntimeError, match=r"^the loop of this worker has ended: .*ZeroDivisionError"):
        _take_for_ever(driver)


def test_an_engine_that_cannot_be_made_is_told_of(loop_factory: Callable[[], Any]) -> None:
    def exits() -> Any:
        raise SystemExit(3)

    sent: list[Any] = [Setup(exits, 2, False, False, None, 0.1, loop_factory)]

    def dumps(thing: Any) -> bytes:
        sent.append(thing)
        return b"1"

    worker = Worker(b"0", lambda data: sent[int(data)], dumps)
    dumped = worker.begin()
    assert dumped is not None and isinstance(load_error(dumped, lambda data: sent[int(data)]), SystemExit)


def test_a_call_that_cannot_be_read_fails_with_the_reason(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())

    went_well, dumped = driver.worker.run(b"99", 1)

    assert not went_well
    assert isinstance(load_error(dumped, driver._loads), IndexError)


def _divide_by_zero() -> None:
    _ = 1 / 0


def _take_for_ever(driver: Driver) -> None:
    while True:
        driver.worker.take(0.1)
