"""Small parts of a journal: what it tells, and when; waits for the disk; the places where tests kill it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import pytest

from areal_core._journal import crash_points
from areal_core._journal.flush import Flush
from areal_core._journal.records import Committed, Queued, Record
from areal_core._journal.store import Store
from areal_core._journal.telling import Lines
from areal_core._journal.upkeep import Upkeep
from areal_core._runner import exit_hook

Line = tuple[str, str, dict[str, Any]]
_PIECE = 2**26
_GIGABYTE: list[Record] = [Queued("0:0", 0, bytes(_PIECE))] * (2**30 // _PIECE)
_BYTE: list[Record] = [Queued("0:1", 0, b"d")]


class Told:
    """What is told while batches are written in *store*, one after the other."""

    def __init__(self, store: Store) -> None:
        self._said: list[Line] = []
        self._lines = Lines(None, lambda *line: self._said.append(line))
        self._upkeep = Upkeep(store, self._lines)

    def after(self, batch: list[Record]) -> list[Line]:
        """Return what is told once this was written as well."""
        self._upkeep.after(batch)
        self._lines.say()
        said, self._said = self._said, []
        return said


def uncommitted(size: int) -> list[Line]:
    return [("warning", "journal_uncommitted", {"bytes": size})]


def test_a_gigabyte_without_a_commit_is_not_told_of_and_a_byte_more_is(store: Store) -> None:
    told = Told(store)
    assert told.after(_GIGABYTE) == []
    assert told.after(_BYTE) == uncommitted(2**30 + 1)


def test_two_gigabytes_at_once_are_told_and_a_byte_more_again(store: Store) -> None:
    told = Told(store)
    assert told.after(_GIGABYTE * 2) == uncommitted(2**31)
    assert told.after(_BYTE) == uncommitted(2**31 + 1)


def test_lines_that_another_thread_takes_meanwhile_are_that_ones() -> None:
    class Taken(deque[Line]):
        """Lines the last of which is taken between the look whether there is one and the taking."""

        def popleft(self) -> Line:
            if len(self) == 1:
                self.clear()
            return super().popleft()

    said: list[str] = []
    lines = Lines(None, lambda _level, event, _fields: said.append(event))
    lines._waiting = Taken()
    for event in ("first", "last"):
        lines.add("info", event)
    lines.say()
    assert said == ["first"]


@pytest.mark.parametrize("daemon", [True, False])
def test_of_those_that_wait_for_the_disk_a_daemon_does_not_go_on_beside_the_interpreters_end(
    daemon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here what holds it for ever is free, so that it goes on once it has taken it."""
    holds = threading.Lock()
    monkeypatch.setattr(exit_hook, "_over", True)
    monkeypatch.setattr(exit_hook, "_never", holds)
    flush = Flush(0, 0)
    flush.answer(None)
    thread = threading.Thread(target=flush.wait, daemon=daemon)
    thread.start()
    thread.join()
    assert holds.locked() == daemon


def test_a_batch_and_a_compaction_come_by_all_crash_points_but_the_executors(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(crash_points, "hook", reached.append)
    store.append([Committed(0)])
    store.compact()
    assert sorted(crash_points.NAMES) == sorted([*reached, "after_delivery"])
