"""Who blocks a loop is named with workers too: on a worker's loop, and on the trainer's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_core._distributed.leases import Report
from areal_core._distributed.wire import Orders, encode, unship
from areal_core._distributed.worker import Setup, Worker
from areal_core._executor.rollout import Plan
from areal_core._watch.loop_watch import Late, LoopWatch
from areal_core.config import InferenceEngineConfig
from children import RunScript
from doors import LONG_S, Door, turn_loop
from executor_tools import WAIT_S, Engine, Playing, answering, no_thread_to_be_had, trajectory_of, value_of
from far_rollouts import FarEngine
from floors import CALLING, workers_here
from logged import LogLines
from near_workers import NearExecutor

WARNING_S = 0.04
BLOCKED_S = 3 * WARNING_S


def is_watching(watch: LoopWatch) -> bool:
    return watch._watcher.active


def compute_hard(value: Any) -> Any:
    time.sleep(BLOCKED_S)
    return trajectory_of(0)


async def block(place: Any) -> Any:
    return compute_hard(place)


async def answer(place: Any) -> Any:
    return trajectory_of(0)


# -- a worker's loop -------------------------------------------------------------------------------


class Driver:
    """A worker in this process, and what is played there."""

    def __init__(self, loop_factory: Callable[[], Any], warning_s: float | None) -> None:
        self._sent: list[Any] = [Setup(FarEngine, 2, False, False, None, 0.1, loop_factory, warning_s)]
        self._parcels = 0
        self.worker = Worker(b"0", self._loads, self._dumps)
        assert self.worker.begin() is None

    @property
    def watch(self) -> LoopWatch | None:
        return self.worker._floor.watch

    def give(self, *calls: Any) -> None:
        """Have an episode played for each of *calls*."""
        for call in calls:
            self._parcels += 1
            number = self._parcels
            orders = Orders(number, 0, False, False)
            orders.plans = {number: self._dumps(Plan(CALLING, None, 1, False, False))}
            orders.give = [(number, self._dumps((number, number, None, 0, call)), [0])]
            self.worker.give(encode(orders))

    def take(self, count: int) -> None:
        """Wait until so many have ended."""
        deadline = time.monotonic() + WAIT_S
        while count > 0:
            report: Report = unship(self.worker.take(WAIT_S), self._loads)
            count -= len(report.ended)
            assert time.monotonic() < deadline

    def _dumps(self, thing: Any) -> bytes:
        self._sent.append(thing)
        return str(len(self._sent) - 1).encode()

    def _loads(self, data: bytes) -> Any:
        return self._sent[int(data)]


@pytest.fixture
def drive(loop_factory: Callable[[], Any]) -> Iterator[Callable[[float | None], Driver]]:
    """Make workers, and stop them."""
    with workers_here() as made:

        def make(warning_s: float | None) -> Driver:
            driver = Driver(loop_factory, warning_s)
            made.append(driver.worker)
            return driver

        yield make


Drive = Callable[[float | None], Driver]


def test_who_blocks_a_workers_loop_is_named_in_its_log(drive: Drive, log_lines: LogLines) -> None:
    driver = drive(WARNING_S)
    driver.give(block)
    line = log_lines.wait_for("loop_blocked ", LONG_S)
    assert line.level == "warning"
    assert "function=test_distributed_watch.compute_hard" in line.message
    assert "remedy=await offloaded" in line.message
    driver.take(1)


def test_a_workers_loop_is_watched_while_anything_is_played_there_and_no_longer(drive: Drive) -> None:
    driver, doors = drive(WARNING_S), [Door(), Door()]
    watch = driver.watch
    assert watch is not None and watch._thread is None, "nothing was played so far"
    for _ in range(2):
        driver.give(*[lambda place, door=door: door.walk_through(trajectory_of(0)) for door in doors])
        for door in doors:
            door.wait_for()
            assert is_watching(watch)
        doors[0].open()
        driver.take(1)
        assert is_watching(watch)
        doors[1].open()
        driver.take(1)
        turn_loop(driver.worker._runner)
        assert not is_watching(watch)
        doors = [Door(), Door()]


def test_many_that_keep_a_workers_loop_late_together_are_named_so(drive: Drive, log_lines: LogLines) -> None:
    watch = drive(WARNING_S).watch
    assert watch is not None
    watch.report(Late("module.function", "file.py:1", (("module.function", 0.9),), 0.03, 0.8, 10.0))
    line = log_lines.wait_for("loop_is_late ", LONG_S)
    assert line.level == "warning" and "functions=module.function 90%" in line.message


def test_a_workers_watch_ends_with_its_loop(drive: Drive) -> None:
    driver = drive(WARNING_S)
    driver.give(answer)
    driver.take(1)
    watch = driver.watch
    assert watch is not None and watch._thread is not None and watch._thread.is_alive()
    driver.worker._runner.destroy(5.0)
    watch._thread.join(LONG_S)
    assert not watch._thread.is_alive()


def test_without_the_setting_nobody_watches_a_worker(drive: Drive, log_lines: LogLines) -> None:
    driver = drive(None)
    driver.give(block)
    driver.take(1)
    assert driver.watch is None
    assert not [line for line in log_lines if "loop_blocked" in line.message]


def test_a_worker_that_has_no_thread_for_it_plays_all_the_same(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopWatch, "begin", no_thread_to_be_had)
    driver = drive(WARNING_S)
    driver.give(answer, answer)
    driver.take(2)
    assert driver.watch is None


# -- the trainer's loop ----------------------------------------------------------------------------


MakeNear = Callable[..., NearExecutor]


@pytest.fixture
def make_near(loop_factory: Callable[[], Any]) -> Iterator[MakeNear]:
    """Make initialized executors with a worker in this process, and destroy them all."""
    made: list[NearExecutor] = []

    def make(on_send: Callable[[Any], object] = bool, **config: Any) -> NearExecutor:
        given = InferenceEngineConfig(consumer_batch_size=8, **config)
        executor = NearExecutor(given, Engine(), loop_factory, on_send)
        made.append(executor)
        executor.initialize()
        executor.join()
        return executor

    yield make
    for executor in made:
        executor.destroy(10.0)


def watch_of(executor: NearExecutor) -> LoopWatch | None:
    assert executor._shift is not None
    return executor._shift.desk.watch


def test_an_item_that_takes_long_to_send_is_named_by_the_trainer(
    make_near: MakeNear, log_lines: LogLines
) -> None:
    executor = make_near(compute_hard, loop_block_warning=WARNING_S)
    executor.submit(1, answering)
    line = log_lines.wait_for("loop_blocked ", LONG_S)
    assert "function=test_distributed_watch.compute_hard" in line.message
    assert [value_of(one) for one in executor.wait(1, WAIT_S)] == [1]


def test_the_trainers_loop_is_watched_while_anything_runs_and_no_longer(make_near: MakeNear) -> None:
    executor = make_near(loop_block_warning=WARNING_S)
    watch = watch_of(executor)
    assert watch is not None and watch._thread is None, "nothing ran so far"
    for _ in range(2):
        door = Door()
        executor.submit(trajectory_of(1), Playing(door.walk_through))
        door.wait_for()
        assert is_watching(watch)
        door.open()
        executor.wait(1, WAIT_S)
        turn_loop(executor.runner)
        assert not is_watching(watch)


def test_without_the_setting_nobody_watches_the_trainer(make_near: MakeNear, log_lines: LogLines) -> None:
    executor = make_near(compute_hard, loop_block_warning=None)
    executor.submit(1, answering)
    executor.wait(1, WAIT_S)
    assert watch_of(executor) is None
    assert not [line for line in log_lines if "loop_blocked" in line.message]


def test_where_no_thread_is_to_be_had_the_trainer_goes_on(
    make_near: MakeNear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopWatch, "begin", no_thread_to_be_had)
    executor = make_near(loop_block_warning=WARNING_S)
    for _ in range(2):
        executor.submit(1, answering)
    assert [value_of(one) for one in executor.wait(2, WAIT_S)] == [1, 1]
    assert watch_of(executor) is None


# -- on Ray ----------------------------------------------------------------------------------------


ON_RAY = """
    import asyncio, sys, threading, time

    from areal_core import DistributedWorkflowExecutor, InferenceEngineConfig, RolloutWorkflow
    from executor_tools import Engine

    class Slow(RolloutWorkflow):
        async def arun_episode(self, engine, data):
            time.sleep(0.3)
            await asyncio.sleep(3600)

    class Stderr:
        def __init__(self, to, *awaited):
            self.to, self.awaited = to, {text: threading.Event() for text in awaited}

        def __getattr__(self, name):
            return getattr(self.to, name)

        def write(self, text):
            for awaited, came in self.awaited.items():
                if awaited in text:
                    came.set()
            return self.to.write(text)

    if __name__ == "__main__":
        sys.stderr = stderr = Stderr(sys.stderr, "loop_blocked ", "rollout_stuck ")
        config = InferenceEngineConfig(loop_block_warning=0.1, stuck_warning=1.0, cancel_grace=0.1)
        options = {"num_cpus": 0}
        executor = DistributedWorkflowExecutor(config, Engine(), Engine, workers=1, ray_options=options)
        executor.initialize()
        executor.submit({"data_id": "item-7"}, Slow())
        print([came.wait(60) for came in stderr.awaited.values()])
        deadline = time.monotonic() + 30
        while (rollout := executor.explain().rollouts[0]).stage == "with its worker":
            assert time.monotonic() < deadline  # it is told every second or so
            time.sleep(0.05)
        print(rollout.stage, rollout.stack)
        print(executor.explain_capacity().running)
        executor.destroy(5)
"""


@pytest.mark.any_loop
@pytest.mark.timeout(120)
def test_on_ray_a_rollout_that_hangs_is_explained_and_who_blocks_a_loop_is_named_on_the_terminal(
    run_script: RunScript,
) -> None:
    pytest.importorskip("ray")
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}

    ended = run_script(ON_RAY, flags=(), env=env, timeout=100.0)

    assert "[True, True]" in ended.stdout, ended.stderr
    assert "playing its workflow (worker 1 has it, and alone knows where in its workflow it is)\n1\n" in (
        ended.stdout
    )
    lines = ended.stderr.splitlines()
    (blocked,) = [line for line in lines if "loop_blocked " in line]
    assert "Slow.arun_episode" in blocked and "pid=" in blocked
    assert [line for line in lines if "rollout_stuck " in line and "data_id=item-7" in line]
    assert "explaining_failed" not in ended.stderr
