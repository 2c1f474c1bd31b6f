"""Gates: what threads block on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from areal_core._runner.gate import Gate, GateEvent
from doors import start_blocked

pytestmark = pytest.mark.any_loop


class Timed:
    """A lock that nobody gets, and that notes for how long each wanted to wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def acquire(self, *, timeout: float) -> bool:
        self.seconds.append(timeout)
        return False


def test_without_a_timeout_it_waits_for_ever() -> None:
    gate, lock = Gate(), Timed()
    waiting = start_blocked(gate.wait)
    gate.open()
    assert waiting.result() is True
    shut: Any = Gate()
    shut._lock = lock
    assert shut.wait(None) is False
    assert lock.seconds == [-1], "which says so to a lock"


@pytest.mark.parametrize("seconds", [0, 0.0, -0.5, -1, -1.0, -math.inf])
def test_with_none_left_it_does_not_wait(seconds: float) -> None:
    assert Gate().wait(seconds) is False
    assert GateEvent().wait(seconds) is False


@pytest.mark.parametrize("seconds", [1e300, math.inf])
def test_longer_than_a_lock_can_wait_is_as_long_as_it_can(seconds: float) -> None:
    gate = Gate()
    waiting = start_blocked(gate.wait, seconds)
    gate.open()
    assert waiting.result() is True


def test_it_lets_everybody_through_now_and_later() -> None:
    event = GateEvent()
    waiting = [start_blocked(event.wait) for _ in range(3)]
    event.set()
    event.set()
    assert [one.result() for one in waiting] == [True] * 3
    assert event.wait() and event.wait(0)
    event.clear()
    assert not event.is_set() and not event.wait(0)
