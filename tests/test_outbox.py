"""What has ended at a worker waits to be fetched, for as long as is good for it, and no longer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import pytest

from areal_core._distributed.outbox import Outbox

pytestmark = pytest.mark.any_loop

LONG_S = 20.0
"""Longer than anything takes: what waits so long fails."""


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def taken(outbox: Outbox, pool: ThreadPoolExecutor) -> Future[list[Any]]:
    """Begin to take in another thread; return when that waits."""
    taking = pool.submit(outbox.take, LONG_S, LONG_S)
    until_it_waits(outbox, taking)
    return taking


def until_it_waits(outbox: Outbox, *taking: Future[list[Any]]) -> None:
    deadline = time.monotonic() + LONG_S
    while len(outbox._changed._waiters) < len(taking):  # type: ignore[attr-defined]
        assert time.monotonic() < deadline and not any(one.done() for one in taking)


def test_nothing_is_there_when_nothing_came_in_time() -> None:
    began = time.monotonic()
    assert Outbox(10).take(0.05, LONG_S) == []
    assert 0.05 <= time.monotonic() - began < LONG_S


def test_what_is_last_waits_for_nothing() -> None:
    outbox = Outbox(10)
    outbox.put([1], is_last=False)
    outbox.put([2], is_last=True)
    began = time.monotonic()
    assert outbox.take(LONG_S, LONG_S) == [1, 2]
    assert time.monotonic() - began < LONG_S / 2
    assert outbox.take(0.0, LONG_S) == []


def test_whoever_waits_gets_what_is_last_at_once(aside: ThreadPoolExecutor) -> None:
    outbox = Outbox(10)
    taking = taken(outbox, aside)
    outbox.put([1], is_last=True)
    assert taking.result(LONG_S / 2) == [1]


def test_whoever_waits_is_woken_by_what_is_last_though_it_is_nothing(aside: ThreadPoolExecutor) -> None:
    outbox = Outbox(10)
    taking = taken(outbox, aside)
    outbox.put((), is_last=True)
    assert taking.result(LONG_S / 2) == []


def test_what_nobody_waited_for_is_due_once() -> None:
    outbox = Outbox(10)
    outbox.put((), is_last=True)
    began = time.monotonic()
    assert outbox.take(LONG_S, 0.0) == []
    assert time.monotonic() - began < LONG_S / 2
    assert outbox.take(0.05, 0.0) == []
    assert time.monotonic() - began >= 0.05, "it was due again"


def test_the_first_waits_a_moment_for_more(aside: ThreadPoolExecutor) -> None:
    outbox = Outbox(10)
    taking = aside.submit(outbox.take, LONG_S, 0.2)
    until_it_waits(outbox, taking)
    began = time.monotonic()
    outbox.put([1], is_last=False)
    assert taking.result(LONG_S) == [1]
    assert 0.2 <= time.monotonic() - began < LONG_S / 2


def test_the_first_waits_from_when_it_came_whenever_the_call_came() -> None:
    outbox = Outbox(10)
    outbox.put([1], is_last=False)
    outbox._since -= LONG_S  # it came long ago
    began = time.monotonic()
    assert outbox.take(LONG_S, LONG_S) == [1]
    assert time.monotonic() - began < LONG_S / 2


def test_enough_wait_for_no_more(aside: ThreadPoolExecutor) -> None:
    outbox = Outbox(3)
    taking = taken(outbox, aside)
    outbox.put([1], is_last=False)
    until_it_waits(outbox, taking)
    outbox.put([2, 3], is_last=False)
    assert taking.result(LONG_S / 2) == [1, 2, 3]


def test_more_than_enough_is_given_in_parts_and_nothing_of_it_waits(aside: ThreadPoolExecutor) -> None:
    outbox, began = Outbox(3), time.monotonic()
    outbox.put(range(8), is_last=False)
    assert [outbox.take(LONG_S, LONG_S) for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    taking = [aside.submit(outbox.take, LONG_S, LONG_S) for _ in range(2)]
    until_it_waits(outbox, *taking)
    outbox.put(range(4), is_last=False)
    assert sorted(one.result(LONG_S / 2) for one in taking) == [[0, 1, 2], [3]]
    assert time.monotonic() - began < LONG_S / 2


def test_of_two_that_wait_one_that_got_nothing_waits_on(aside: ThreadPoolExecutor) -> None:
    linger_s = 0.3
    outbox = Outbox(3)
    outbox.put([0], is_last=False)
    taking = [aside.submit(outbox.take, LONG_S, linger_s) for _ in range(2)]
    until_it_waits(outbox, *taking)  # both linger
    outbox.put([1, 2], is_last=False)
    first = next(as_completed(taking, LONG_S / 2))
    (second,) = {*taking} - {first}
    assert first.result() == [0, 1, 2]
    with pytest.raises(TimeoutError):
        second.result(2 * linger_s)
    outbox.put([3], is_last=True)
    assert second.result(LONG_S / 2) == [3]


def test_what_was_last_is_due_though_more_has_begun_since() -> None:
    outbox = Outbox(10)
    outbox.put([1], is_last=True)
    outbox.put([2], is_last=False)
    began = time.monotonic()
    assert outbox.take(LONG_S, LONG_S) == [1, 2]
    assert time.monotonic() - began < LONG_S / 2


def test_nobody_waits_at_what_is_closed(aside: ThreadPoolExecutor) -> None:
    outbox = Outbox(10)
    taking = [aside.submit(outbox.take, LONG_S, LONG_S) for _ in range(2)]
    until_it_waits(outbox, *taking)
    outbox.close()
    assert [one.result(LONG_S / 2) for one in taking] == [[], []]
    outbox.put([1], is_last=False)
    assert outbox.take(LONG_S, LONG_S) == [1], "what was there is given still"
    assert outbox.take(LONG_S, LONG_S) == []


def test_nothing_is_lost_or_doubled_between_threads(aside: ThreadPoolExecutor) -> None:
    with ThreadPoolExecutor(2) as takers:
        _put_and_take(aside, takers)


def _put_and_take(aside: ThreadPoolExecutor, takers: ThreadPoolExecutor) -> None:
    outbox, count = Outbox(5), 3_000
    numbers = itertools.count()
    all_put = threading.Barrier(3)

    def put() -> None:
        while (number := next(numbers)) < count:
            outbox.put([number], is_last=number % 7 == 0)
        all_put.wait(LONG_S)

    putting = [aside.submit(put) for _ in range(3)]

    def take() -> list[int]:
        came = []
        while some := outbox.take(LONG_S, 0.0):
            came += some
        return came

    taking = [takers.submit(take) for _ in range(2)]
    for one in putting:
        one.result(LONG_S)
    outbox.close()  # from now on nothing is what there is
    came = [number for one in taking for number in one.result(LONG_S)]
    assert sorted(came) == list(range(count)) and outbox.take(0.0, 0.0) == []
