"""submit: ids, the bound, the order of starting, who may call it."""

from __future__ import annotations

import asyncio
import enum
import functools
import statistics
import sys
import threading
import time
from typing import Any

import pytest

from areal_core import errors
from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats, TaskQueueFullError
from conftest import MakeRunner
from doors import Blockade, Door, fail, give, turn_loop

# -- what is called ---------------------------------------------------------------------------------


def test_a_task_gets_its_arguments_and_its_value_comes_back(make_runner: MakeRunner) -> None:
    async def add(a: int, b: int, *, c: int, d: int = 0) -> tuple[int, int, int, int]:
        return a, b, c, d

    runner = make_runner()
    runner.submit(add, 1, 2, c=3)
    runner.submit(add, 1, b=2, c=3, d=4)
    assert runner.wait(2, timeout=10) == [(1, 2, 3, 0), (1, 2, 3, 4)]


@pytest.mark.any_loop
def test_keyword_arguments_of_any_name_reach_the_task(make_runner: MakeRunner) -> None:
    async def echo(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    names = {
        "self": 1,
        "async_fn": 2,
        "fn": 3,
        "args": 4,
        "kwargs": 5,
        "timeout": 6,
        "timeout_s": 7,
        "life": 8,
    }
    options = {"task_id": 9, "task_timeout": 10, "runner": 11}
    runner = make_runner()
    runner.submit(echo, **names)
    runner.with_options(task_timeout=10.0).submit(echo, **names, **options)
    assert runner.wait(2, timeout=10) == [names, names | options]
    assert runner.run(echo, **names, **options) == names | options


@pytest.mark.any_loop
def test_whatever_can_be_called_and_gives_an_awaitable_is_a_task(make_runner: MakeRunner) -> None:
    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        async def __call__(self, value: int) -> int:
            return self.base + value

        async def method(self, value: int) -> int:
            return self.base - value

    runner = make_runner()
    runner.submit(Adder(10), 1)
    runner.submit(Adder(10).method, 1)
    runner.submit(functools.partial(give, 7))
    runner.submit(lambda: give(8))
    assert runner.wait(4, timeout=10) == [11, 9, 7, 8]


@pytest.mark.any_loop
def test_a_coroutine_is_refused_with_advice(make_runner: MakeRunner) -> None:
    runner = make_runner()
    coroutine = give(1)
    with pytest.raises(TypeError) as raised:
        runner.submit(coroutine)  # type: ignore[arg-type]
    assert str(raised.value) == (
        f"expected an async function and its arguments, not {coroutine!r}; "
        "pass fn, *args rather than the coroutine fn(*args)"
    )
    coroutine.close()
    assert runner.stats().submitted == 0


@pytest.mark.any_loop
@pytest.mark.parametrize("thing", [None, 5, "give"])
def test_what_cannot_be_called_is_refused(make_runner: MakeRunner, thing: Any) -> None:
    runner = make_runner()
    with pytest.raises(TypeError, match=rf"^expected an async function and its arguments, not {thing!r}; "):
        runner.submit(thing)
    with pytest.raises(TypeError, match=rf"^expected an async function and its arguments, not {thing!r}; "):
        runner.with_options().submit(thing)
    assert runner.stats() == RunnerStats(state="running")


# -- ids --------------------------------------------------------------------------------------------


class Place(enum.IntEnum):
    FIRST = 0
    LAST = 2**48 - 1


@pytest.mark.any_loop
@pytest.mark.parametrize("task_id", [0, 7, 2**48 - 1, *Place])
def test_the_callers_id_comes_back_from_submit_and_with_the_result(
    make_runner: MakeRunner, task_id: int
) -> None:
    runner = make_runner()
    assert runner.submit(give, task_id=task_id) == task_id
    assert runner.wait(1, timeout=10, with_timing=True)[0].task_id == task_id
    assert runner.with_options(task_id=task_id).submit(give) == task_id
    assert runner.wait(1, timeout=10, with_timing=True)[0].task_id == task_id


@pytest.mark.any_loop
@pytest.mark.parametrize("task_id", [-1, 2**48, 2**48 + 1, -(2**60)])
def test_an_id_out_of_range_is_a_value_error(make_runner: MakeRunner, task_id: int) -> None:
    runner = make_runner()
    expected = f"^task_id={task_id} has to be in 0\\.\\.2\\*\\*48-1$"
    with pytest.raises(ValueError, match=expected):
        runner.submit(give, task_id=task_id)
    with pytest.raises(ValueError, match=expected):
        runner.with_options(task_id=task_id).submit(give)
    assert runner.stats().submitted == 0


@pytest.mark.any_loop
@pytest.mark.parametrize("task_id", [True, False, 1.0, "1", b"1"])
def test_an_id_that_is_no_int_is_a_type_error(make_runner: MakeRunner, task_id: Any) -> None:
    runner = make_runner()
    with pytest.raises(TypeError, match=rf"^task_id has to be an int, not {task_id!r}$"):
        runner.submit(give, task_id=task_id)
    with pytest.raises(TypeError, match=rf"^task_id has to be an int, not {task_id!r}$"):
        runner.with_options(task_id=task_id).submit(give)
    assert runner.stats().submitted == 0


@pytest.mark.any_loop
def test_ids_the_runner_makes_count_up_from_2_to_the_48_and_never_come_again(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    assert [runner.submit(give) for _ in range(3)] == [2**48, 2**48 + 1, 2**48 + 2]
    assert runner.submit(give, task_id=2**48 - 1) == 2**48 - 1
    assert runner.with_options().submit(give) == 2**48 + 3
    runner.destroy()
    runner.initialize()
    assert runner.submit(give) == 2**48 + 4


@pytest.mark.any_loop
def test_an_id_is_in_use_from_submit_until_its_result_is_collected(make_runner: MakeRunner) -> None:
    runner, door = make_runner(), Door()

    def refused() -> bool:
        with pytest.raises(ValueError, match="task_id=5") as raised:
            runner.submit(give, "usurper", task_id=5)
        return str(raised.value) == (
            "task_id=5 is in use until its result is collected; pass another, or none"
        )

    runner.pause()
    runner.submit(door.walk_through, "first", task_id=5)
    assert refused()  # pending
    runner.resume()
    door.wait_for()
    assert refused()  # running
    door.open()
    turn_loop(runner)
    runner.submit(give, "other")
    assert runner.wait(2, timeout=10) == ["first", "other"]
    runner.submit(give, "first again", task_id=5)
    assert runner.wait_for_task(5, timeout=10).data == "first again"
    runner.submit(give, "third", task_id=5)
    runner.submit(door.walk_through)
    with pytest.raises(TimeoutError, match="only received 2"):
        runner.wait(3, timeout=0.05)
    assert refused()  # finished
    assert runner.wait(2, timeout=0)[0] == "third"
    assert runner.stats() == RunnerStats(submitted=5, collected=5, state="running")


# -- the bound --------------------------------------------------------------------------------------


def test_the_bound_counts_pending_running_and_finished_and_the_error_gives_the_split(
    make_runner: MakeRunner,
) -> None:
    runner, door = make_runner(max_queue_size=6), Door()
    runner.submit(give, "finished")
    for _ in range(2):
        runner.submit(door.walk_through, "running")
    door.wait_for(2)
    turn_loop(runner)
    runner.pause()
    for _ in range(3):
        runner.submit(give, "pending")
    assert runner.stats() == RunnerStats(submitted=6, pending=3, running=2, finished=1, state="paused")
    with pytest.raises(TaskQueueFullError) as raised:
        runner.submit(give, "too many")
    assert str(raised.value) == (
        "Input queue full: 6 tasks are not collected (3 pending, 2 running, 1 finished); "
        "collect results with wait(), or raise max_queue_size"
    )
    assert isinstance(raised.value, RuntimeError)
    assert isinstance(raised.value, errors.ArealError)
    assert TaskQueueFullError is errors.TaskQueueFullError
    assert runner.stats().submitted == 6
    runner.resume()
    door.open()
    assert sorted(map(str, runner.wait(6, timeout=10))) == ["finished", *["pending"] * 3, *["running"] * 2]
    assert runner.stats() == RunnerStats(submitted=6, collected=6, state="running")


@pytest.mark.any_loop
@pytest.mark.parametrize("collect", ["wait", "wait_for_task", "as_completed"])
def test_a_place_is_free_again_once_a_result_is_collected(make_runner: MakeRunner, collect: str) -> None:
    runner = make_runner(max_queue_size=1)
    for number in range(3):
        task_id = runner.submit(give, number)
        with pytest.raises(TaskQueueFullError, match=r"^Input queue full: 1 tasks are not collected"):
            runner.submit(give, "too many")
        if collect == "wait":
            assert runner.wait(1, timeout=10) == [number]
        elif collect == "wait_for_task":
            assert runner.wait_for_task(task_id, timeout=10).data == number
        else:
            assert next(iter(runner.as_completed(timeout=10))).data == number


@pytest.mark.any_loop
def test_a_consumer_that_never_collects_fills_the_runner_and_loses_nothing(make_runner: MakeRunner) -> None:
    runner = make_runner(max_queue_size=20)
    accepted = []
    for number in range(50):
        try:
            runner.submit(give, number, task_id=number)
        except TaskQueueFullError:
            continue
        accepted.append(number)
    assert accepted == list(range(20))
    assert runner.wait(20, timeout=10) == accepted
    runner.submit(give, "and it goes on")
    assert runner.wait(1, timeout=10) == ["and it goes on"]


# -- starting ---------------------------------------------------------------------------------------


def test_tasks_start_in_the_order_of_submit(make_runner: MakeRunner) -> None:
    runner, started = make_runner(max_queue_size=600), list[int]()

    async def start(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0)

    for number in range(300):
        runner.submit(start, number)
    runner.pause()
    for number in range(300, 600):
        runner.submit(start, number)
    runner.resume()
    runner.wait(600, timeout=10)
    assert started == list(range(600))


@pytest.mark.any_loop
def test_from_3_12_on_a_task_starts_without_a_turn_of_the_loop(make_runner: MakeRunner) -> None:
    runner, started = make_runner(), list[str]()

    async def start() -> None:
        started.append("started")

    async def submit_and_look() -> list[str]:
        runner.submit(start)
        await asyncio.sleep(0)
        return list(started)

    assert runner.run(submit_and_look) == (["started"] if sys.version_info >= (3, 12) else [])
    assert runner.wait(1, timeout=10) == [None]


def test_a_task_may_submit_tasks(make_runner: MakeRunner) -> None:
    runner = make_runner()

    async def parent() -> int:
        return runner.submit(give, "child")

    runner.submit(parent, task_id=1)
    ended = {result.task_id: result.data for result in runner.wait(2, timeout=10, with_timing=True)}
    assert ended == {1: 2**48, 2**48: "child"}


def test_submit_does_not_block_while_a_task_blocks_the_loop(make_runner: MakeRunner) -> None:
    runner, blockade = make_runner(), Blockade()
    runner.submit(blockade.block, "blocker")
    blockade.wait_until_entered()
    for number in range(50):
        runner.submit(give, number)
    assert runner.stats() == RunnerStats(submitted=51, pending=50, running=1, state="running")
    blockade.lift()
    assert runner.wait(51, timeout=10) == ["blocker", *range(50)]


def test_a_task_starts_at_once_while_others_run(make_runner: MakeRunner) -> None:
    runner, door = make_runner(max_queue_size=200), Door()
    for _ in range(100):
        runner.submit(door.walk_through)
    door.wait_for(100)
    latencies = []
    for _ in range(21):
        before = time.monotonic_ns()
        task_id = runner.submit(give)
        latencies.append(runner.wait_for_task(task_id, timeout=10).create_time - before)
    assert min(latencies) > 0
    assert statistics.median(latencies) < 20e6, "a poll of 50 ms would take 25 ms"
    door.open()


def test_many_threads_submit_at_once_and_each_task_runs_once(make_runner: MakeRunner) -> None:
    threads, each = 8, 100
    runner = make_runner(max_queue_size=threads * each)
    together = threading.Barrier(threads)
    ids: list[list[int]] = [[] for _ in range(threads)]

    def submit(mine: int) -> None:
        together.wait()
        for number in range(each):
            ids[mine].append(runner.submit(give, (mine, number)))

    workers = [threading.Thread(target=submit, args=(mine,)) for mine in range(threads)]
    for worker in workers:
        worker.start()
    results = runner.wait(threads * each, timeout=10, with_timing=True)
    for worker in workers:
        worker.join()
    expected = {ids[mine][number]: (mine, number) for mine in range(threads) for number in range(each)}
    assert len(expected) == threads * each
    assert {result.task_id: result.data for result in results} == expected
    starts = [result.create_time for result in sorted(results, key=lambda result: result.task_id)]
    assert runner.stats().collected == runner.stats().submitted == len(starts)


# -- a runner that does not run ---------------------------------------------------------------------


@pytest.mark.any_loop
def test_submit_before_initialize_is_an_error() -> None:
    runner = AsyncTaskRunner[Any](4)
    with pytest.raises(errors.RunnerStoppedError) as raised:
        runner.submit(give)
    assert str(raised.value) == "the runner was never initialized; call initialize(), or use `with`"
    assert runner.stats() == RunnerStats(state="new")


@pytest.mark.any_loop
def test_submit_after_destroy_is_an_error(make_runner: MakeRunner) -> None:
    runner = make_runner()
    runner.submit(fail, ValueError("kept"))
    runner.destroy()
    for submit in (runner.submit, runner.with_options(task_timeout=1.0).submit):
        with pytest.raises(errors.RunnerStoppedError) as raised:
            submit(give)
        assert str(raised.value) == "the runner was destroyed; initialize() starts it again"
    assert runner.stats() == RunnerStats(submitted=1, finished=1, state="stopped")
