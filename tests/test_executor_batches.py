"""Batches: prepare_batch and its dataloader, rollout_batch, and others who wait at the same time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from areal_core.errors import UnknownTaskError
from conftest import MakeExecutor
from doors import Caller, Door, start_blocked, turn_loop
from executor_tools import (
    WAIT_S,
    Lists,
    Playing,
    TellingEngine,
    accept_even,
    answering,
    balance,
    counts,
    obeying,
    trajectory_of,
    values_of,
)
from logged import LogLines

# -- prepare_batch -----------------------------------------------------------------------------------


def test_batches_come_full_in_the_order_of_the_data_and_the_pipeline_is_kept_full(
    make_executor: MakeExecutor,
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=4, max_head_offpolicyness=1)
    loader = Lists(3)
    for version in range(6):
        batch = executor.prepare_batch(loader, answering)
        assert values_of(batch) == list(range(4 * version, 4 * version + 4))
        ledger = executor.ledger
        kept_going = ledger.submitted - ledger.collected
        assert kept_going > 4, "there is not enough for the next batch, which is to be made meanwhile"
        engine.set_version(version + 1)
        turn_loop(executor.runner)  # the trainer takes its time, and all is done that may start
    assert loader.next <= 6 * 4 + 3 * 8, "it pulls far more than it can use"
    assert executor.report().staleness_max == 1
    balance(executor.ledger)


def test_the_batch_has_the_dataloaders_size_and_an_odd_one_is_told_once(
    make_executor: MakeExecutor, log_lines: LogLines
) -> None:
    engine = TellingEngine()
    executor = make_executor(engine, consumer_batch_size=4, max_head_offpolicyness=1)
    loader = Lists(1, batch_size=6)
    for version in range(2):
        assert len(executor.prepare_batch(loader, answering)) == 6
        engine.set_version(version + 1)
    assert len(executor.prepare_batch(Lists(1), answering)) == 4
    told = [line for line in log_lines.of("warning") if line.startswith("batch_is_not_consumer_batch_size")]
    assert told == ["batch_is_not_consumer_batch_size batch=6 consumer_batch_size=4"]


def test_only_accepted_ones_are_delivered_and_the_others_are_collected_with_them(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=3)
    batch = executor.prepare_batch(Lists(2), answering, should_accept_fn=accept_even)
    assert values_of(batch) == [0, 2, 4]
    ledger = executor.ledger
    balance(ledger)
    assert ledger.rejected >= 2
    assert ledger.collected >= 5
    assert ledger.accepted == 3


def test_what_is_for_batches_is_never_seen_by_wait_nor_by_its_id(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2, max_head_offpolicyness=2)
    executor.submit(100, answering, task_id=100)
    first = executor.prepare_batch(Lists(2), answering)
    turn_loop(executor.runner)
    assert values_of(first) == [0, 1]
    assert executor.ledger.finished > 1
    assert values_of(executor.wait(1, timeout=0)) == [100]
    with pytest.raises(TimeoutError, match="only received 0"):
        executor.wait(1, timeout=0)
    with pytest.raises(UnknownTaskError):
        executor.wait_for_task(2**48 + 1)


def test_a_dynamic_batch_comes_after_so_many_endings_of_which_one_was_accepted(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(consumer_batch_size=4, max_head_offpolicyness=2)
    data: list[Any] = [1, None, OSError(), None, *[None] * 4, 2, 3, None, 4]
    first = executor.prepare_batch([data], obeying, dynamic_bs=True)
    assert values_of(first) == [1]
    second = executor.prepare_batch([data], obeying, dynamic_bs=True)
    assert values_of(second) == [2, 3, 4], "four that brought nothing are no batch"
    balance(executor.ledger)


def test_a_group_is_one_trajectory_of_the_batch(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2)
    batch = executor.prepare_batch(Lists(2), answering, group_size=3)
    assert [one["input_ids"].tolist() for one in batch] == [[[0]] * 3, [[1]] * 3]


def test_a_trainer_that_filters_gives_back_and_gets_more_at_the_same_version(
    make_executor: MakeExecutor,
) -> None:
    executor, loader = make_executor(consumer_batch_size=4), Lists(4)
    executor.prepare_batch(loader, answering)
    assert executor.get_capacity() == 0
    executor.give_back(4)
    assert values_of(executor.prepare_batch(loader, answering)) == [4, 5, 6, 7]


# -- rollout_batch -----------------------------------------------------------------------------------


def test_rollout_batch_returns_exactly_its_own_in_order_while_other_work_goes_on(
    make_executor: MakeExecutor,
) -> None:
    engine, over = TellingEngine(), threading.Event()
    # Kept, as a row that becomes too old again and again is None in the end.
    executor = make_executor(engine, consumer_batch_size=200, max_concurrent_rollouts=16, on_stale="keep")

    async def play(data: int) -> Any:
        for _ in range(data % 5):
            await asyncio.sleep(0)
        return trajectory_of(data) if data % 7 else None

    workflow, got, claimed = Playing(play), [], []
    numbers = itertools.count(10_000)

    def traffic() -> None:
        while not over.is_set():
            for _ in range(4):
                executor.submit(next(numbers), workflow)
            mine = next(numbers)
            task_id = executor.submit(mine, workflow)
            claimed.append((mine, values_of([executor.wait_for_task(task_id, WAIT_S)])[0]))
            got.extend(executor.wait(4, WAIT_S))
            engine.set_version(engine.version + 1)

    busy = threading.Thread(target=traffic)
    busy.start()
    try:
        for first in range(0, 600, 20):
            rows = list(range(first, first + 20))
            expected = [row if row % 7 else None for row in rows]
            is_eval = first % 40 == 0
            assert values_of(executor.rollout_batch(rows, workflow, is_eval=is_eval)) == expected
    finally:
        over.set()
        busy.join()
    assert len(got) > 8
    assert all(value is None or value >= 10_000 for value in values_of(got))
    assert all(value == (mine if mine % 7 else None) for mine, value in claimed)
    balance(executor.ledger)
    assert executor.ledger.finished == 0
    assert executor.eval_ledger.collected == 300


def test_rows_jump_the_queue_and_are_charged_on_delivery(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=2)
    for _ in range(2):
        executor.submit(1, answering)
    executor.wait(2, WAIT_S)
    executor.submit(2, answering)  # has no budget
    assert values_of(executor.rollout_batch([7, 8], answering)) == [7, 8]
    assert executor.get_capacity() == -2
    assert executor.ledger.pending == 1


@pytest.mark.any_loop
def test_a_batch_of_no_rows_is_empty(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    assert executor.rollout_batch([], answering) == []
    assert executor.ledger.submitted == 0


def test_a_filter_and_groups_work_in_rows_too(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=4)
    rows = executor.rollout_batch([1, 2, 3], answering, None, "executor_tools:accept_even", group_size=2)
    assert values_of(rows) == [None, 2, None]
    assert rows[1] is not None
    assert rows[1]["input_ids"].shape == (2, 1)


def test_a_row_that_became_too_old_is_run_again(make_executor: MakeExecutor) -> None:
    engine, door, versions = TellingEngine(), Door(), []

    async def play(data: int) -> Any:
        versions.append(engine.version)
        if len(versions) == 1:
            await door.walk_through()
        return trajectory_of(data, versions=engine.version)

    executor = make_executor(engine, consumer_batch_size=1)
    calling = start_blocked(executor.rollout_batch, [5], Playing(play))
    door.wait_for()
    engine.set_version(1)
    assert values_of(calling.result()) == [5]
    assert versions == [0, 1]
    assert executor.ledger.requeued == 1


# -- who gets what ------------------------------------------------------------------------------------


def test_evaluation_is_apart_from_training(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(consumer_batch_size=1, max_concurrent_rollouts=2), Door()
    workflow = Playing(door.walk_through)
    for value in range(3):
        executor.submit(trajectory_of(value), workflow, is_eval=True, task_id=value)
    door.wait_for(2)  # as many slots as training has, and the third waits
    assert counts(executor.eval_ledger) == {"submitted": 3, "pending": 1, "running": 2}
    assert executor.get_capacity() == 1
    executor.submit(7, answering)
    waiting_for_eval = start_blocked(executor.wait_outcomes, 3, None, is_eval=True)
    assert values_of(executor.wait(1, WAIT_S)) == [7]
    door.open()
    outcomes = waiting_for_eval.result()
    assert all(outcome.is_eval for outcome in outcomes)
    assert sorted(outcome.task_id for outcome in outcomes) == [0, 1, 2]
    assert executor.get_capacity() == 0  # the one that was trained on
    assert executor.staleness_manager.get_stats().accepted == 1
    with pytest.raises(TimeoutError):
        executor.wait(1, timeout=0)


def test_several_waiters_get_each_a_share_and_nothing_twice(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=1_000)
    waiting: list[Caller[Any]] = [start_blocked(executor.wait, 50) for _ in range(8)]
    for value in range(400):
        executor.submit(value, answering)
    got = [value for caller in waiting for value in values_of(caller.result())]
    assert sorted(got, key=str) == sorted(range(400), key=str)
    assert counts(executor.ledger) == {"submitted": 400, "collected": 400, "accepted": 400}


def test_a_waiter_who_wants_more_does_not_hold_up_one_who_wants_less(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=8)
    much, little = start_blocked(executor.wait, 4), start_blocked(executor.wait, 1)
    executor.submit(1, answering)
    assert values_of(little.result()) == [1]
    for value in range(4):
        executor.submit(value, answering)
    assert values_of(much.result()) == [0, 1, 2, 3]
