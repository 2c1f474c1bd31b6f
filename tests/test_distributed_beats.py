"""Signs of life of a worker that has nothing to say."""

from __future__ import annotations

import heapq
import itertools

import pytest

from areal_core._distributed.beats import Beats

pytestmark = pytest.mark.any_loop


def times_of_return(beats: Beats, began: float, count: int) -> list[float]:
    """Return when two calls that are made again as soon as they return do so, with nothing."""
    waits = sorted(began + beats.patience_s(began) for _ in range(2))
    returned = list[float]()
    while len(returned) < count:
        returned.append(now := heapq.heappop(waits))
        heapq.heappush(waits, now + beats.patience_s(now))
    return returned


def test_a_worker_with_nothing_to_say_gives_a_sign_each_second_whichever_call_brings_it() -> None:
    assert times_of_return(Beats(1.0), 100.0, 6) == [101.0, 102.0, 103.0, 104.0, 105.0, 106.0]


def test_calls_that_brought_much_in_no_time_do_not_make_the_next_sign_late() -> None:
    beats = Beats(1.0)
    for number in range(100):
        assert 0.0 < beats.patience_s(number / 100) <= 2.0
    signs = [1.0, *times_of_return(beats, 1.0, 8)]
    assert max(late - early for early, late in itertools.pairwise(signs)) <= 1.0
    assert signs[-1] >= 5.0  # nor are there many more of them
