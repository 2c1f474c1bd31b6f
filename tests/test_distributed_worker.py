"""The calls of a worker, in this process: what its engine does to them, and what its end does."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from areal_core._distributed import worker as module
from areal_core._distributed.wire import Orders, encode, load_error, unship
from areal_core._distributed.worker import Setup, Worker
from areal_core._executor.work import Plan
from executor_tools import WAIT_S, Engine, trajectory_of
from far_rollouts import FarEngine
from floors import CALLING, trajectory_in
from logged import LogLines


class Driver:
    """A worker, and what a driver says to it. What is sent stands for an object that is here."""

    def __init__(self, engine: Engine, loop_factory: Callable[[], Any]) -> None:
        self._sent: list[Any] = [Setup(lambda: engine, 2, False, False, None, 0.1, loop_factory)]
        self._numbers = itertools.count(1)
        self.worker = Worker(b"0", self._loads, self._dumps)
        self.worker.begin()

    def give(self, *, version: int = 0, holds: bool = False) -> None:
        """Have an episode played whose trajectory is the version of the engine."""
        number = next(self._numbers)
        orders = Orders(number, version, False, holds)
        orders.plans = {number: self._dumps(Plan(CALLING, None, 1, False, False))}
        head = self._dumps((number, number, None, version, self._play))
        orders.give = [(number, head, [0])]
        self.worker.give(encode(orders))

    def take(self) -> list[int]:
        """Return the next values."""
        report = unship(self.worker.take(WAIT_S), self._loads)
        return [int(trajectory_in(one)["input_ids"][0, 0]) for one in report.ended]

    async def _play(self, place: Any) -> Any:
        return trajectory_of(Worker.engine.get_version())

    def call(self, async_fn: Any, *args: Any, timeout: float | None = None) -> Any:
        """Return, or raise, what comes of a call on the worker's loop."""
        went_well, value = self.worker.run(self._dumps((async_fn, args)), timeout)
        if went_well:
            return self._loads(value)
        raise load_error(value, self._loads)

    def _dumps(self, thing: Any) -> bytes:
        self._sent.append(thing)
        return str(len(self._sent) - 1).encode()

    def _loads(self, data: bytes) -> Any:
        return self._sent[int(data)]


class Odd(FarEngine):
    """Raises what it is told to when it is told a version that is not 0."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def set_version(self, version: int) -> None:
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
    made: list[Worker] = []

    def make(engine: Engine) -> Driver:
        driver = Driver(engine, loop_factory)
        made.append(driver.worker)
        return driver

    before = Worker.engine
    yield make
    for worker in made:
        worker.stop(5.0)
    Worker.engine = before


def test_what_comes_after_the_stop_of_a_worker_does_nothing(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    driver.give()
    assert driver.take() == [0]

    driver.worker.stop(5.0)
    driver.give(version=1)

    with pytest.raises(RuntimeError, match=r"^the loop of this worker has ended$"):
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


def test_an_engine_that_does_not_return_holds_up_neither_the_sign_of_life_nor_the_stop(
    drive: Callable[[Engine], Driver],
) -> None:
    engine = Blocked()
    driver = drive(engine)
    with ThreadPoolExecutor(1) as pool:
        giving = pool.submit(driver.give, version=1)
        try:
            assert engine.begins.wait(WAIT_S)
            first, second = (unship(driver.worker.take(0.0), driver._loads).stalled_s for _ in range(2))
            assert 0.0 < first < second, "it is told of as what does not go on"
            driver.worker.stop(5.0)
        finally:
            engine.may_go.set()
        giving.result(WAIT_S)


def test_an_engine_that_returned_is_told_of_no_more(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())
    driver.give(version=1)
    assert driver.take() == [1]
    assert driver.worker._telling_s() == 0.0


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


def test_a_call_that_cannot_be_read_fails_with_the_reason(drive: Callable[[Engine], Driver]) -> None:
    driver = drive(FarEngine())

    went_well, dumped = driver.worker.run(b"99")

    assert not went_well
    assert isinstance(load_error(dumped, driver._loads), IndexError)
