"""Gates: what threads block on."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

from areal_core._runner.gate import Gate, GateEvent
from doors import LONG_S, start_blocked

pytestmark = pytest.mark.any_loop


class WokenError(Exception):
    """Raised by a signal's handler."""


def wake(signum: int, frame: FrameType | None) -> None:
    raise WokenError


def test_a_signal_that_wakes_nobody_is_noticed_while_it_waits() -> None:
    gate, blocks, is_over = Gate(), threading.Semaphore(0), threading.Event()

    def signal_another() -> None:
        blocks.acquire()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        is_over.wait(LONG_S)
        gate.open()

    def notice(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ == "acquire":
            blocks.release()

    before = signal.signal(signal.SIGUSR1, wake)
    other = threading.Thread(target=signal_another)
    other.start()
    try:
        sys.setprofile(notice)
        with pytest.raises(WokenError):
            gate.wait()
        assert not gate.is_open, "and not only when the wait is over"
    finally:
        sys.setprofile(None)
        is_over.set()
        other.join()
        signal.signal(signal.SIGUSR1, before)


class Lock:
    """A lock that is had at the third try, when the gate is open."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.seconds: list[float] = []
        self.is_released = False

    def acquire(self, *, timeout: float) -> bool:
        self.seconds.append(timeout)
        if len(self.seconds) < 3:
            return False
        self._gate.is_open = True
        return True

    def release(self) -> None:
        self.is_released = True


def test_without_a_timeout_it_waits_for_ever() -> None:
    gate: Any = Gate()
    lock = gate._lock = Lock(gate)
    assert gate.wait(None) is True
    assert len(lock.seconds) == 3 and all(0 < seconds <= 1 for seconds in lock.seconds)
    assert lock.is_released, "for the next one"


def test_with_a_timeout_it_waits_for_that_long_and_not_for_longer() -> None:
    began = time.monotonic()
    assert Gate().wait(0.6) is False
    assert time.monotonic() - began >= 0.6
    gate: Any = Gate()
    lock = gate._lock = Lock(gate)
    assert gate.wait(0.1) is True
    assert 0 < max(lock.seconds) <= 0.1


@pytest.mark.parametrize("seconds", [0, 0.0, -0.5, -1, -1.0, -math.inf, math.nan])
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
