"""What waiters hold and give back, on a shelf of its own: two at once, twice, with a change in between."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence

import pytest

from areal_core._runner.job import Job
from areal_core._runner.shelf import Holding, Shelf
from doors import give

pytestmark = pytest.mark.any_loop


def job(task_id: int) -> Job:
    made = Job(task_id, give, (), {}, contextvars.copy_context(), None)
    made.create_time = made.finish_time = task_id
    return made


def shelf_with(*task_ids: int, unfinished: Callable[[], int] = int) -> Shelf:
    shelf = Shelf(threading.RLock(), unfinished, lambda task_id: False)
    jobs = {task_id: job(task_id) for task_id in task_ids}
    shelf.shelve(list(jobs.values()), dict(jobs))
    return shelf


def held(shelf: Shelf, count: int) -> Holding:
    holding = Holding()
    shelf.take(count, 0.0, holding)
    return holding


def ids(jobs: Sequence[Job]) -> list[int]:
    return [one.task_id for one in jobs]


def test_two_that_are_interrupted_at_once_both_give_back() -> None:
    shelf = shelf_with(1, 2, 3)
    first, second = held(shelf, 1), held(shelf, 2)
    assert (list(shelf.finished), shelf.collected) == ([], 3)
    shelf.returned.extend((first, second))
    shelf.settle()
    assert (list(shelf.finished), shelf.collected) == ([1, 2, 3], 0)


def test_one_that_held_nothing_keeps_nobody_else_from_giving_back() -> None:
    shelf = shelf_with(1)
    shelf.returned.extend((Holding(), held(shelf, 1)))
    shelf.settle()
    assert list(shelf.finished) == [1]


def test_what_is_given_back_twice_comes_back_once() -> None:
    shelf = shelf_with(1, 2)
    first = held(shelf, 2)
    shelf.returned.extend((first, first))
    shelf.settle()
    assert (list(shelf.finished), shelf.collected) == ([1, 2], 0)
    assert ids(held(shelf, 2).jobs) == [1, 2]


def test_a_claim_that_was_dropped_with_all_else_can_be_given_back() -> None:
    shelf, holding = shelf_with(1), Holding()
    shelf.claim(1, holding)
    assert shelf.discard_all() == 1
    shelf.returned.append(holding)
    shelf.settle()
    assert not shelf.returned


def test_what_a_finalizer_changes_while_something_is_given_back_is_not_undone() -> None:
    class Gate:
        """Of a waiter that is woken: there, anything may run."""

        def open(self) -> None:
            if not taken:
                taken.append(0)
                taken[:] = ids(held(shelf, 1).jobs)

    class Waiter:
        gate, count, or_idle = Gate(), 5, False

    shelf, taken = shelf_with(1, 2, 3), list[int]()
    first = held(shelf, 1)
    shelf._waiters.append(Waiter())  # type: ignore[arg-type]
    shelf.returned.append(first)
    with shelf._lock:
        shelf.take_back()
    assert taken and sorted([*shelf.finished, *taken]) == [1, 2, 3]
    assert shelf.collected == 1


def test_nothing_is_there_or_claimed_once_all_is_dropped() -> None:
    shelf = shelf_with(1, 2)
    shelf.claim(1, Holding())
    assert shelf.discard_all() == 2
    with pytest.raises(TimeoutError, match="only received 0"):
        shelf.take(1, 0.0, Holding())
    assert not shelf.take(1, 0.0, Holding(), or_idle=True)


def test_a_waiter_that_comes_while_all_is_dropped_looks_again() -> None:
    def unfinished() -> int:
        if not dropped:
            dropped.append(0)
            dropped[0] = shelf.discard_all()
            return 1  # what it was before
        return 0

    dropped = list[int]()
    shelf = shelf_with(unfinished=unfinished)
    assert not shelf.take(1, 0.0, Holding(), or_idle=True)
    assert dropped == [0]
