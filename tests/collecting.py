"""Ways to collect a runner's results, and to stand in the middle of one."""

from __future__ import annotations

from typing import Any

from areal_core._runner.shelf import Holding, Shelf
from areal_core.async_task_runner import AsyncTaskRunner, TimedResult


def ids(results: list[TimedResult[Any]]) -> list[int]:
    return [result.task_id for result in results]


def timed(runner: AsyncTaskRunner[Any], count: int) -> list[TimedResult[Any]]:
    return runner.wait(count, with_timing=True)


def all_of(runner: AsyncTaskRunner[Any], timeout: float | None = 10.0) -> list[int]:
    return ids(list(runner.as_completed(timeout)))


def shelf_of(runner: AsyncTaskRunner[Any]) -> Shelf:
    assert runner._life is not None
    return runner._life.ledger.shelf


def claim_by_hand(runner: AsyncTaskRunner[Any], task_id: int) -> None:
    """Leave a task as it is between the claim and the taking of its result."""
    shelf_of(runner).claim(task_id, Holding())
