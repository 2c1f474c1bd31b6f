"""Whether the trainer waits for trajectories, or they for it, as snapshots a second apart tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from areal_core._executor.snapshot import Snapshot
from areal_core._observe.asking import Asking
from areal_core._observe.rates import Rates
from areal_core._observe.runs import read_run
from areal_core._observe.status_file import StatusFile
from snapshots import SNAPSHOT, changed

pytestmark = pytest.mark.any_loop

WAIT = SNAPSHOT.waits[0]


def at(second: float, waits: bool, delivered: int = 0, is_eval: bool = False) -> Snapshot:
    """Return what was seen then: whether somebody waits for a batch, and how many were delivered so far."""
    wait = msgspec.structs.replace(WAIT, is_eval=is_eval)
    return changed(
        uptime_s=float(second),
        waits=(wait,) if waits else (),
        staleness=replace(SNAPSHOT.staleness, delivered=delivered),
    )


def asking_of(seen: Iterable[Snapshot]) -> Asking:
    asking = Asking()
    for snapshot in seen:
        asking.add(snapshot)
    return asking


def test_nothing_is_known_before_it_has_asked() -> None:
    for seen in ([], [at(0, False)], [at(0, False, 7), at(9, False, 7)]):
        asking = asking_of(seen)
        assert (asking.busy_s, asking.waiting_share) == (None, None)


def test_it_is_busy_since_it_was_last_seen_to_wait() -> None:
    asking = asking_of([at(0, False), at(1, True), at(2, True)])
    assert asking.busy_s == 0
    for second in (3, 40):
        asking.add(at(second, False))
    assert asking.busy_s == 38


def test_who_is_given_a_batch_at_once_has_asked_too() -> None:
    asking = asking_of([at(0, False, 5), at(10, False, 9), at(13, False, 9)])
    assert asking.busy_s == 3
    assert asking.waiting_share == 0


def test_evaluation_is_not_what_a_trainer_waits_for() -> None:
    assert asking_of([at(0, True, is_eval=True), at(1, True, is_eval=True)]).busy_s is None


def test_the_share_is_that_of_the_last_ten_minutes() -> None:
    asking = asking_of(at(second, second % 4 == 0) for second in range(500))
    assert asking.waiting_share == pytest.approx(0.25, abs=0.01)
    for second in range(500, 1101):
        asking.add(at(second, False))
    assert asking.waiting_share == 0
    assert asking.busy_s == 1100 - 496
    assert len(asking._samples) <= 601


def test_the_time_since_the_last_look_counts_whatever_its_length() -> None:
    assert asking_of([at(0, False), at(3, True), at(4, False)]).waiting_share == 0.75


def test_another_life_begins_anew() -> None:
    asking = asking_of([at(0, False), at(50, True), at(0.5, False)])
    assert (asking.busy_s, asking.waiting_share) == (None, None)


def test_the_status_file_has_it(tmp_path: Path) -> None:
    rates = Rates()
    for snapshot in (at(0, False), at(1, True), at(4, False)):
        rates.add(snapshot)
    StatusFile(tmp_path / "status", 1).write(SNAPSHOT, rates)
    status = read_run(tmp_path / "status").status
    assert (status.trainer_busy_s, status.trainer_waits) == (3, 0.25)
