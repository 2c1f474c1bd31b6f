"""How often workers are heard of, and signs of life of one that has nothing to say."""

from __future__ import annotations

import heapq
import itertools

import pytest

from areal_core._distributed.pace import (
    AHEAD_PER_SLOT,
    LEAST_BEAT_S,
    LEAST_LINGER_S,
    Beats,
    enough,
    pace_of,
)

pytestmark = pytest.mark.any_loop

LEASE_S = 30.0


def times_of_return(beats: Beats, began: float, count: int) -> list[float]:
    """Return when two calls that are made again as soon as they return do so, with nothing."""
    waits = sorted(began + beats.patience_s(began, 1.0) for _ in range(2))
    returned = list[float]()
    while len(returned) < count:
        returned.append(now := heapq.heappop(waits))
        heapq.heappush(waits, now + beats.patience_s(now, 1.0))
    return returned


def test_a_worker_with_nothing_to_say_gives_a_sign_each_second_whichever_call_brings_it() -> None:
    assert times_of_return(Beats(), 100.0, 6) == [101.0, 102.0, 103.0, 104.0, 105.0, 106.0]


def test_calls_that_brought_much_in_no_time_do_not_make_the_next_sign_late() -> None:
    beats = Beats()
    for number in range(100):
        assert 0.0 < beats.patience_s(number / 100, 1.0) <= 2.0
    signs = [1.0, *times_of_return(beats, 1.0, 8)]
    assert max(late - early for early, late in itertools.pairwise(signs)) <= 1.0
    assert signs[-1] >= 5.0  # nor are there many more of them


def test_few_workers_are_heard_of_at_once_and_many_as_often_as_the_driver_can_listen() -> None:
    assert pace_of(1, LEASE_S) == pace_of(2, LEASE_S) == (LEAST_LINGER_S, LEAST_BEAT_S)
    often = [workers / pace_of(workers, LEASE_S).linger_s for workers in (10, 100, 900)]
    assert often == pytest.approx([250.0] * 3)


@pytest.mark.parametrize("lease_s", [5.0, LEASE_S])
@pytest.mark.parametrize("workers", [1, 100, 1_000_000])
def test_a_lease_is_renewed_in_time_however_many_workers_there_are(workers: int, lease_s: float) -> None:
    linger_s, beat_s = pace_of(workers, lease_s)
    assert linger_s < beat_s
    longest = beat_s + linger_s  # something ends right before the beat, and waits for company
    assert longest < lease_s / 2


def test_what_a_worker_may_hold_ahead_is_enough() -> None:
    assert enough(1) == AHEAD_PER_SLOT and enough(16) == 16 * AHEAD_PER_SLOT
    assert enough(10_000) == enough(1_000) < 1_000
