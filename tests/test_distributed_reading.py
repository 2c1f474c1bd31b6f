"""What is read of orders, and what others see of that meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from areal_core._distributed.reading import UNPICKLED, Reader
from areal_core._distributed.wire import Orders
from executor_tools import WAIT_S

pytestmark = pytest.mark.any_loop

GIVE: list[tuple[int, bytes | None, list[int]]] = [
    (1, b"first", [0]),
    (2, None, [3]),
    (3, b"second", [0, 1]),
    (4, b"third", [0]),
]
ORDERS = Orders(1, 0, False, False, plans={5: b"a plan", 6: b"another plan"}, give=GIVE)

Said = list[tuple[int, int]]


class Reading:
    """A reader, and what was seen of it while it read each thing."""

    def __init__(self, see: Callable[[Reader], Any]) -> None:
        self.seen: dict[bytes, Any] = {}
        self._see = see
        self.reader = Reader(self._loads)

    def _loads(self, data: bytes) -> Any:
        self.seen[data] = self._see(self.reader)
        if data == b"third":
            raise SystemExit(3)
        return data.decode()


def looked_on(reader: Reader) -> Said:
    """Look until what is read has been read for long; return of what there is a stage then."""
    deadline, before = time.monotonic() + WAIT_S, 0.0
    assert reader.look() == (0.0, []), "nobody saw it before"
    while time.monotonic() < deadline:
        passed_s, stages = reader.look()
        assert passed_s >= before
        before = passed_s
        if stages:
            assert {stage for _, _, stage in stages} == {(UNPICKLED, None, passed_s, 0, None)}
            return [(number, place) for number, place, _ in stages]
    raise AssertionError("it is not told of")


def test_what_is_read_is_what_was_sent_or_the_error_of_that() -> None:
    read: Any = Reading(lambda _: None).reader.read(ORDERS)
    plans, entries = read
    assert plans == {5: "a plan", 6: "another plan"}
    assert entries[:3] == [(1, "first", [0]), (2, None, [3]), (3, "second", [0, 1])]
    assert repr(entries[3]) == "(4, SystemExit(3), [0])"


def test_what_takes_long_to_read_is_told_of_and_nothing_before_or_after_it() -> None:
    reading = Reading(looked_on)
    reading.reader.read(ORDERS)
    assert reading.seen[b"first"] == [(1, 0)]
    assert reading.seen[b"second"] == [(3, 0), (3, 1)]
    assert reading.seen[b"third"] == [(4, 0)]
    assert [reading.reader.look() for _ in range(2)] == [(0.0, [])] * 2, "nothing is read any more"


def test_a_plan_that_takes_long_to_read_is_told_of_as_all_that_came_with_it() -> None:
    reading = Reading(looked_on)
    reading.reader.read(ORDERS)
    with_it = [(1, 0), (2, 3), (3, 0), (3, 1), (4, 0)]
    assert reading.seen[b"a plan"] == reading.seen[b"another plan"] == with_it


def test_what_goes_on_does_not_hang_however_long_it_takes() -> None:
    reading = Reading(lambda reader: reader.look())
    for _ in range(2):
        reading.reader.read(ORDERS)
        assert list(reading.seen.values()) == [(0.0, [])] * 5
        reading.seen.clear()
