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


def shelf_with(
    *task_ids: int,
    unfinished: Callable[[], int] = int,
    is_unfinished: Callable[[int], bool] = frozenset[int]().__contains__,
) -> Shelf:
    shelf = Shelf(threading.RLock(), unfinished, is_unfinished)
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


class Meddler:
    """A waiter that takes a result when it is woken for the first time: there, any finalizer may run."""

    count, or_idle = 5, False

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.gate = self
        self.taken: list[int] = []
        shelf._waiters.append(self)  # type: ignore[arg-type]

    def open(self) -> None:
        if not self.taken:
            self.taken.append(0)
            self.taken[:] = ids(held(self._shelf, 1).jobs)


def test_what_a_finalizer_changes_while_something_is_given_back_is_not_undone() -> None:
    shelf = shelf_with(1, 2, 3)
    first = held(shelf, 1)
    meddler = Meddler(shelf)
    shelf.returned.append(first)
    with shelf._lock:
        shelf.take_back()
    assert meddler.taken and sorted([*shelf.finished, *meddler.taken]) == [1, 2, 3]
    assert shelf.collected == 1


def test_a_cancellation_in_whose_middle_a_finalizer_changes_something_is_to_be_asked_for_again() -> None:
    shelf, pending = shelf_with(1), {2: job(2)}
    Meddler(shelf)
    with shelf._lock:
        assert not shelf.shelve_cancelled(pending[2], pending)
        assert (list(pending), pending[2].decision, shelf.finished) == ([2], None, {})
        assert shelf.shelve_cancelled(pending[2], pending)
    assert (pending, list(shelf.finished), shelf.finished[2].status) == ({}, [2], "cancelled")


def test_a_claim_given_back_twice_takes_it_from_nobody_who_has_it_since() -> None:
    shelf, first, second = shelf_with(1), Holding(), Holding()
    for holding in (first, second):
        shelf.claim(1, holding)
        shelf.returned.append(first)
        shelf.settle()
    with pytest.raises(ValueError, match="already waited for"):
        shelf.claim(1, Holding())
    shelf.take_claimed(1, 0.0, second)
    assert ids(second.jobs) == [1]


def test_what_is_given_back_when_others_have_its_id_gets_none_that_anybody_could_have() -> None:
    in_use = set[int]()
    shelf = shelf_with(1, 2, is_unfinished=in_use.__contains__)
    both = held(shelf, 2)
    in_use.update((1, 2))
    shelf.returned.append(both)
    shelf.settle()
    assert all(key < 0 for key in shelf.finished)
    assert ids(held(shelf, 2).jobs) == [1, 2]


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
