"""What the config and the arguments of an executor change: filters, dumps, logs, limits, shares."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_core._runner import life
from areal_core._watch.loop_watch import LoopWatch
from areal_core.staleness_manager import RolloutStat, StalenessManager
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import LONG_S, Door, turn_loop
from executor_tools import (
    WAIT_S,
    Engine,
    Lists,
    Playing,
    TellingEngine,
    accept_even,
    answering,
    counts,
    no_thread_to_be_had,
    obeying,
    trajectory_of,
    values_of,
)
from logged import LogLines

# -- filters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["loop", "thread", "process"])
def test_the_filter_runs_where_it_is_told_to(make_executor: MakeExecutor, place: str) -> None:
    executor = make_executor(consumer_batch_size=8, accept_in=place)
    rows = executor.rollout_batch([1, 2, 3, 4], answering, should_accept_fn=accept_even)
    assert values_of(rows) == [None, 2, None, 4]


def test_a_filter_in_a_thread_does_not_hold_up_the_loop(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8, accept_in="thread")
    entered, leave = threading.Event(), threading.Event()

    def accept(trajectory: Any) -> bool:
        entered.set()
        return leave.wait(LONG_S)

    executor.submit(1, answering, should_accept_fn=accept)
    assert entered.wait(LONG_S)
    executor.submit(2, answering)
    assert values_of(executor.wait(1, WAIT_S)) == [2]
    leave.set()
    assert values_of(executor.wait(1, WAIT_S)) == [1]


def test_a_filter_may_be_async_on_the_loop(make_executor: MakeExecutor) -> None:
    async def accept(trajectory: Any) -> bool:
        await asyncio.sleep(0)
        return accept_even(trajectory)

    executor = make_executor(consumer_batch_size=8)
    assert values_of(executor.rollout_batch([1, 2], answering, should_accept_fn=accept)) == [None, 2]
    strict = make_executor(accept_in="process")
    with pytest.raises(TypeError, match=r"is async: .* use accept_in='loop'"):
        strict.submit(1, answering, should_accept_fn=accept)


@pytest.mark.parametrize("place", ["loop", "thread"])
def test_a_filter_that_raises_or_takes_too_long_fails_its_rollout(
    make_executor: MakeExecutor, place: str
) -> None:
    async def never(trajectory: Any) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    over = threading.Event()

    def late(trajectory: Any) -> bool:
        return over.wait(LONG_S)

    def raising(trajectory: Any) -> bool:
        raise LookupError("no key")

    executor = make_executor(consumer_batch_size=8, accept_in=place, accept_timeout=0.05)
    executor.submit(1, answering, should_accept_fn=raising, task_id=1)
    executor.submit(1, answering, should_accept_fn=never if place == "loop" else late, task_id=2)
    by_id = {outcome.task_id: outcome for outcome in executor.wait_outcomes(2, WAIT_S)}
    over.set()
    assert (by_id[1].status, type(by_id[1].error)) == ("failed", LookupError)
    assert (by_id[2].status, type(by_id[2].error)) == ("failed", TimeoutError)
    assert "accept_timeout=0.05" in str(by_id[2].error)


# -- trajectories -------------------------------------------------------------------------------------


def test_trajectories_of_the_wrong_form_fail_when_that_is_checked(make_executor: MakeExecutor) -> None:
    wrong = {"input_ids": np.zeros((1, 3), np.int64), "attention_mask": np.ones((1, 2), np.int32)}

    async def play(data: Any) -> Any:
        return wrong

    lenient = make_executor(consumer_batch_size=8)
    lenient.submit(1, Playing(play))
    assert lenient.wait_outcomes(1, WAIT_S)[0].status == "accepted"
    strict = make_executor(consumer_batch_size=8, check_trajectory_format=True)
    strict.submit(1, Playing(play))
    (outcome,) = strict.wait_outcomes(1, WAIT_S)
    assert (outcome.status, type(outcome.error)) == ("failed", ValueError)
    assert "attention_mask has the shape [1, 2] where [1, 3] is expected" in str(outcome.error)


@pytest.mark.parametrize("odd", [[1], "text", 7, trajectory_of])
def test_what_is_no_trajectory_fails_with_a_word_on_what_to_return(
    make_executor: MakeExecutor, odd: Any
) -> None:
    async def play(data: Any) -> Any:
        return odd

    executor = make_executor()
    executor.submit(1, Playing(play))
    (outcome,) = executor.wait_outcomes(1, WAIT_S)
    assert (outcome.status, type(outcome.error)) == ("failed", TypeError)
    assert "return a dict of arrays, or None to reject" in str(outcome.error)


def test_what_is_delivered_is_dumped_by_version(make_executor: MakeExecutor, tmp_path: Path) -> None:
    engine = TellingEngine(3)
    executor = make_executor(engine, consumer_batch_size=4, dump_dir=tmp_path / "dump")
    executor.submit({"data_id": "seven"}, Playing(lambda data: _seven()), task_id=7)
    executor.submit(None, obeying)
    executor.submit(OSError(), obeying)
    executor.wait(3, WAIT_S)
    engine.set_version(4)
    executor.prepare_batch(Lists(4), answering)
    executor.submit(9, answering)  # never collected
    executor.destroy()
    files = {path.name: path.read_text().splitlines() for path in (tmp_path / "dump").iterdir()}
    assert sorted(files) == ["3.jsonl", "4.jsonl"]
    (record,) = [json.loads(line) for line in files["3.jsonl"]]
    assert record.pop("seconds") >= 0
    trajectory = record.pop("trajectory")
    assert (trajectory["input_ids"], trajectory["versions"]) == ([[7, 7]], [[-1, 3]])
    assert record == {
        "task_id": 7,
        "data_id": "seven",
        "version": 3,
        "start_version": 3,
        "origin": 3,
        "is_eval": False,
    }
    dumped = [json.loads(line)["trajectory"]["input_ids"] for line in files["4.jsonl"]]
    assert dumped == [[[0]], [[1]], [[2]], [[3]]]


async def _seven() -> Any:
    return trajectory_of(7, versions=[-1, 3], length=2)


# -- the log -------------------------------------------------------------------------------------------


def test_a_failure_is_one_line_with_its_traceback_and_what_names_it(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    executor, error = make_executor(consumer_batch_size=8), LookupError("no tool")

    async def play(data: Any) -> Any:
        raise error

    executor.submit({"data_id": "sum-7"}, Playing(play), task_id=7)
    executor.submit(1, Playing(play), task_id=8, is_eval=True, group_size=3)
    executor.submit(None, obeying)
    executor.submit(1, answering)
    executor.wait(3, WAIT_S)
    executor.wait_for_task(8, WAIT_S)
    executor.destroy()
    lines = [line for line in log_lines if line.level != "debug"]
    assert [(line.level, line.error) for line in lines] == [("error", error)] * 2
    assert lines[0].message.startswith("rollout_failed rollout=7 workflow=Playing data_id=sum-7 seconds=")
    assert lines[1].message.startswith("rollout_failed rollout=8 workflow=Playing is_eval=True seconds=")


def test_a_timeout_is_a_warning(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor, door = make_executor(episode_timeout=0.01), Door()
    executor.submit(None, Playing(door.walk_through), task_id=7)
    executor.wait(1, WAIT_S)
    line = log_lines.wait_for("rollout_timed_out rollout=7")
    assert line.level == "warning"
    assert "0.01" in line.message


@pytest.mark.parametrize("traces", [False, True])
def test_starts_and_ends_are_told_when_that_is_asked_for(
    make_executor: MakeExecutor, log_lines: LogLines, traces: bool
) -> None:
    executor = make_executor(Engine(2), consumer_batch_size=8, enable_rollout_tracing=traces)
    executor.submit(1, answering, task_id=1)
    executor.wait(1, WAIT_S)
    executor.submit(None, obeying, task_id=2)
    executor.wait(1, WAIT_S)
    executor.destroy()
    events = [" ".join(line.message.split()[:2]) for line in log_lines if line.level == "debug"]
    told = [
        "rollout_started rollout=1",
        "rollout_accepted rollout=1",
        "rollout_started rollout=2",
        "rollout_rejected rollout=2",
    ]
    assert [event for event in events if event.startswith("rollout_")] == (told if traces else [])


def test_a_logger_of_ones_own_is_told_and_one_that_raises_does_no_harm(make_executor: MakeExecutor) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage().split()[0])
            raise RuntimeError("the disk is full")

    told: list[str] = []
    logger = logging.getLogger("test_executor_options")
    handler = Raising()
    logger.addHandler(handler)
    try:
        executor = make_executor(consumer_batch_size=8, logger=logger)
        for data in (OSError(), OSError(), 3):
            executor.submit(data, obeying)
        assert values_of(executor.wait(3, WAIT_S)) == [None, None, 3]
        executor.destroy()
    finally:
        logger.removeHandler(handler)
    assert told == ["rollout_failed"] * 2


def test_a_log_handler_may_wait_for_a_thread_that_looks_at_the_executor(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    """As `logging.info("%r", executor)` in the trainer's thread does, which holds the handler's lock."""

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("rollout_failed"):
                thread = threading.Thread(target=lambda: seen.append(repr(executor)))
                thread.start()
                thread.join(2.0)
                in_time.append(not thread.is_alive())

    seen: list[str] = []
    in_time: list[bool] = []
    handler = Looking()
    logging.getLogger("areal_core").addHandler(handler)
    try:
        executor = make_executor()
        executor.submit(OSError(), obeying)
        executor.wait(1, WAIT_S)
        turn_loop(executor.runner)  # the line is written
    finally:
        logging.getLogger("areal_core").removeHandler(handler)
    assert in_time == [True]
    assert seen[0].startswith("<WorkflowExecutor running submitted=1 ")


def test_who_blocks_the_loop_is_named(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    executor = make_executor(loop_block_warning=0.04)

    async def think_hard(data: Any) -> Any:
        time.sleep(0.12)

    executor.submit(1, Playing(think_hard))
    line = log_lines.wait_for("loop_blocked")  # though nothing else happens on the loop
    assert line.level == "warning"
    assert "think_hard" in line.message
    executor.wait(1, WAIT_S)


# -- limits and shares ---------------------------------------------------------------------------------


def running(executor: WorkflowExecutor, door: Door, count: int, **options: Any) -> int:
    """Submit *count* rollouts that wait at *door*, and return how many run."""
    workflow = Playing(door.walk_through)
    for _ in range(count):
        executor.submit(None, workflow, **options)
    turn_loop(executor.runner)
    return executor.ledger.running + executor.eval_ledger.running


def test_no_more_samples_run_than_are_allowed_at_once(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=3), Door()
    assert running(executor, door, 5) == 3
    assert executor.get_capacity() == 0


def test_no_more_is_handed_to_the_runner_than_queue_size_evaluation_included(
    make_executor: MakeExecutor,
) -> None:
    executor, door = make_executor(consumer_batch_size=8, queue_size=3), Door()
    assert running(executor, door, 2, is_eval=True) == 2
    assert running(executor, door, 4) == 3
    assert (executor.ledger.pending, executor.eval_ledger.pending) == (3, 0)
    door.open()
    assert len(executor.wait(4, WAIT_S)) == 4
    executor.submit(OSError(), obeying)
    assert executor.wait(1, WAIT_S) == [None]


def test_a_group_needs_a_slot_for_each_member(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=8, max_concurrent_rollouts=6), Door()
    assert running(executor, door, 3, group_size=4) == 2
    door.wait_for(6)
    assert executor.runner.stats().abandoned == 0
    door.open()
    executor.wait(3, WAIT_S)


def test_a_share_of_the_batch_and_of_the_concurrency_is_this_processs(make_executor: MakeExecutor) -> None:
    executor = make_executor(parts=4, consumer_batch_size=8, max_concurrent_rollouts=4)
    door = Door()
    assert executor.get_capacity() == 1
    assert executor.staleness_manager.consumer_batch_size == 2
    assert running(executor, door, 3) == 1
    door.open()
    executor.wait(2, WAIT_S)
    executor.destroy()
    executor.initialize(None, 2)
    assert executor.get_capacity() == 2
    assert len(executor.prepare_batch(Lists(4), answering)) == 4
    executor.destroy()
    for parts in (3, 8, 16):  # 8 of 4 slots
        with pytest.raises(ValueError, match=f"train_data_parallel_size={parts}"):
            executor.initialize(None, parts)
    assert executor.runner.stats().state == "stopped"
    executor.initialize()
    assert executor.get_capacity() == 4
    assert len(executor.prepare_batch(Lists(4), answering)) == 8


def test_the_limits_of_a_manager_that_is_given_are_used_and_it_is_told(make_executor: MakeExecutor) -> None:
    provider = Engine(5)
    manager = StalenessManager(provider, 4, 2, 1)
    executor = make_executor(Engine(0), manager=manager, consumer_batch_size=100)
    assert executor.staleness_manager is manager
    door = Door()
    assert running(executor, door, 6) == 4
    assert manager.get_stats() == RolloutStat(enqueued=2, running=4)
    door.open()
    executor.wait(6, WAIT_S)
    assert manager.get_stats() == RolloutStat(rejected=6)
    executor.submit(1, answering)
    assert executor.wait_outcomes(1, WAIT_S)[0].start_version == 5, "the version is its provider's"
    provider.version = 6
    executor.on_version_changed()
    batch = executor.prepare_batch(Lists(2), answering)
    assert values_of(batch) == [0, 1]
    turn_loop(executor.runner)
    assert manager.get_stats().accepted == 5


def test_a_manager_that_raises_does_no_harm(make_executor: MakeExecutor, log_lines: LogLines) -> None:
    class Raising(StalenessManager):
        def on_rollout_enqueued(self) -> None:
            raise LookupError("enqueued")

        on_rollout_submitted = on_rollout_accepted = on_rollout_rejected = on_rollout_enqueued

    executor = make_executor(manager=Raising(Engine(), None, 8, 0))
    for data in (1, None, OSError()):
        executor.submit(data, obeying)
    assert values_of(executor.wait(3, WAIT_S)) == [1, None, None]
    assert counts(executor.ledger) == {
        "submitted": 3,
        "collected": 3,
        "accepted": 1,
        "rejected": 1,
        "failed": 1,
    }
    assert log_lines.wait_for("staleness_manager_raised").level == "error"


def test_a_manager_that_never_returns_does_not_keep_destroy_from_ending(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_GIVE_UP_S", 0.1)
    entered, leave = threading.Event(), threading.Event()

    class Hanging(StalenessManager):
        def on_rollout_accepted(self) -> None:
            entered.set()
            leave.wait(WAIT_S)

    executor = make_executor(manager=Hanging(Engine(), None, 8, 0), leave=True)
    executor.submit(1, answering)
    assert entered.wait(WAIT_S)
    began = time.monotonic()
    executor.destroy(0.1)
    assert time.monotonic() - began < WAIT_S / 2
    leave.set()


def test_where_no_thread_is_to_be_had_nobody_watches_and_nothing_is_lost(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoopWatch, "begin", no_thread_to_be_had)
    executor = make_executor(consumer_batch_size=2)
    assert values_of(executor.rollout_batch([1, 2], answering)) == [1, 2]
