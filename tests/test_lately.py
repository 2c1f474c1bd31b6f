"""What held rollouts up in the last ten seconds, and that a file of a run says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from areal_core._executor.snapshot import Snapshot
from areal_core._observe.lately import LATE_S, Calls, Held, Lately, held_at
from areal_core._observe.rates import Rates
from areal_core._observe.runs import read_run
from areal_core._observe.status_file import StatusFile
from areal_core._offload.stats import OffloadStats
from snapshots import changed

pytestmark = pytest.mark.any_loop


def at(
    second: float, stages: Mapping[str, int], busy: int = 0, waiting: int = 0, lag_s: float = 0.0
) -> Snapshot:
    """Return what was seen then: so many rollouts in which stages, and offloaded calls."""
    threads = OffloadStats(place="thread", workers=4, busy=busy, waiting=waiting)
    return changed(uptime_s=float(second), stages=dict(stages), offloaded=(threads,), loop_lag_s=lag_s)


def held_of(*seen: Snapshot) -> Held:
    lately = Lately()
    for snapshot in seen:
        lately.add(snapshot)
    return lately.held()


def test_nothing_is_held_up_before_the_first_look() -> None:
    assert held_of() == Held(late=0.0, stages={}, calls={})


def test_it_is_the_average_of_ten_seconds() -> None:
    before = [at(second, {"playing": 99}, busy=99, lag_s=9.0) for second in range(10)]
    found = held_of(*before, at(20, {"generating": 6, "reward": 2}, 4, 1), at(25, {"generating": 2}, 2, 8))
    assert found == Held(
        late=0.0, stages={"generating": 4.0, "reward": 1.0}, calls={"thread": Calls(busy=3.0, waiting=4.5)}
    )


def test_a_loop_is_late_from_the_bound_on() -> None:
    lags = (LATE_S, 0.0, LATE_S - 0.001, 3.0)
    assert held_of(*(at(second, {}, lag_s=lag) for second, lag in enumerate(lags))).late == 0.5
    assert held_at(changed(loop_lag_s=LATE_S)).late == 1.0
    assert held_at(changed(loop_lag_s=None)).late == 0.0


def test_another_life_begins_anew() -> None:
    assert held_of(at(9, {"playing": 9}), at(0.5, {"generating": 1})).stages == {"generating": 1.0}


def test_the_status_file_has_it(tmp_path: Path) -> None:
    rates = Rates()
    for snapshot in (at(0, {"generating": 2}, 4, 9), at(1, {"generating": 4}, 4, 9, lag_s=1.0)):
        rates.add(snapshot)
    StatusFile(tmp_path / "status", 1).write(at(1, {}), rates)
    held = read_run(tmp_path / "status").status.held
    assert held == Held(late=0.5, stages={"generating": 3.0}, calls={"thread": Calls(busy=4.0, waiting=9.0)})
