"""Ten thousand episodes that end in every way there is: each moves its counters by one."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from areal_core.staleness_manager import RolloutStat, StalenessManager
from conftest import MakeExecutor
from executor_tools import (
    WAIT_S,
    Engine,
    Playing,
    balance,
    counts,
    park,
    statuses_of,
    trajectory_of,
)

MANY = 10_000
TIMEOUT_S = 3.0  # more than any turn of the loop takes, or others time out, too


class Complaining(StalenessManager):
    """Counts, and raises each time."""

    def on_rollout_accepted(self) -> None:
        super().on_rollout_accepted()
        raise OSError("after accept")

    def on_rollout_rejected(self) -> None:
        super().on_rollout_rejected()
        raise OSError("after the end")


class RaisingLogger:
    """Counts the events it is told, and raises each time."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def _log(self, event: str, **fields: Any) -> None:
        self.events[event] += 1
        raise RuntimeError("the disk is full")

    debug = info = warning = error = _log


async def accepted() -> Any:
    return trajectory_of(1)


async def accepted_later() -> Any:
    await asyncio.sleep(0)
    return trajectory_of(1)


async def rejected() -> Any:
    return None


async def raising() -> Any:
    await asyncio.sleep(0)
    raise LookupError("no such tool")


async def returning_nonsense() -> Any:
    return [1, 2, 3]


async def exiting() -> Any:
    raise SystemExit(3)


async def cancelling_itself() -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def raising_its_own_cancellation() -> Any:
    raise asyncio.CancelledError


async def parked() -> Any:
    await park()


def raising_filter(trajectory: Any) -> bool:
    raise ZeroDivisionError


def refusing_filter(trajectory: Any) -> bool:
    return False


ENDINGS = {
    accepted: "accepted",
    accepted_later: "accepted",
    rejected: "rejected",
    raising: "failed",
    returning_nonsense: "failed",
    exiting: "failed",
    cancelling_itself: "cancelled",
    raising_its_own_cancellation: "cancelled",
}


async def _play(act: Any) -> Any:
    return await act()


async def _play_one_of_two(act: Any) -> Any:
    """Do *act* once, in the first member of a group; the other is accepted."""
    return await (act() if next(_turns) % 2 == 0 else accepted())


_turns = itertools.count()


@pytest.mark.timeout(120)
def test_each_of_ten_thousand_moves_its_counters_by_one(make_executor: MakeExecutor, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    logger, manager = RaisingLogger(), Complaining(Engine(), 256, 2 * MANY, 0)
    executor = make_executor(
        manager=manager,
        logger=logger,
        max_consecutive_failures=MANY,
        episode_timeout=TIMEOUT_S,
        dump_dir=tmp_path / "taken",  # no directory: nothing can be written
    )
    over, snapshots = threading.Event(), 0

    def look() -> None:
        nonlocal snapshots
        while not over.wait(0.002):
            balance(executor.ledger)
            balance(executor.eval_ledger)
            snapshots += 1

    looker = threading.Thread(target=look)
    looker.start()
    try:
        workflow = Playing(_play)
        expected: dict[int, str] = {}
        expected_eval: dict[int, str] = {}
        acts = itertools.cycle(ENDINGS.items())
        for number in range(MANY):
            if number % 100 == 7:
                task_id = executor.submit(parked, workflow)
                expected[task_id] = "timed_out"
            elif number % 20 == 3:
                task_id = executor.submit(parked, workflow)
                assert executor.cancel(task_id)
                expected[task_id] = "cancelled"
            elif number % 20 == 5:
                task_id = executor.submit(accepted, workflow, should_accept_fn=raising_filter)
                expected[task_id] = "failed"
            elif number % 20 == 6:
                task_id = executor.submit(accepted, workflow, should_accept_fn=refusing_filter)
                expected[task_id] = "rejected"
            elif number % 20 == 8:
                task_id = executor.submit(accepted, workflow, group_size=3)
                expected[task_id] = "accepted"
            elif number % 20 == 9:
                task_id = executor.submit(raising, workflow, group_size=3)
                expected[task_id] = "failed"
            else:
                act, ending = next(acts)
                is_eval = number % 10 == 1
                task_id = executor.submit(act, workflow, is_eval=is_eval)
                (expected_eval if is_eval else expected)[task_id] = ending
        outcomes = executor.wait_outcomes(len(expected), 5 * WAIT_S)
        eval_outcomes = executor.wait_outcomes(len(expected_eval), WAIT_S, is_eval=True)
    finally:
        over.set()
        looker.join()
    assert snapshots > 20
    assert statuses_of(outcomes) == expected
    assert statuses_of(eval_outcomes) == expected_eval
    of_each, of_each_eval = Counter(expected.values()), Counter(expected_eval.values())
    assert set(of_each) == {"accepted", "rejected", "failed", "timed_out", "cancelled"}
    everything = {"submitted": len(expected), "collected": len(expected)}
    assert counts(executor.ledger) == everything | of_each
    assert len(expected) + len(expected_eval) == MANY
    everything = {"submitted": len(expected_eval), "collected": len(expected_eval)}
    assert counts(executor.eval_ledger) == everything | of_each_eval
    assert manager.get_stats() == RolloutStat(
        accepted=of_each["accepted"], rejected=len(expected) - of_each["accepted"]
    )
    assert executor.report().delivered == of_each["accepted"]
    assert executor.get_capacity() == 256, "slots are taken that nobody uses"
    executor.destroy()  # the log is complete
    assert logger.events["rollout_failed"] == of_each["failed"] + of_each_eval["failed"]
    assert logger.events["rollout_timed_out"] == of_each["timed_out"]
