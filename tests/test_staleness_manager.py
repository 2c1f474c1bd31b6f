"""StalenessManager: AReaL's arithmetic, under its names."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core.staleness_manager import RolloutStat, StalenessManager
from doors import in_thread
from executor_tools import Engine


def a_manager(
    version: int = 0, *, most: int | None = None, batch: int = 4, staleness: int = 0
) -> StalenessManager:
    return StalenessManager(Engine(version), most, batch, staleness)


EVENTS: dict[str, tuple[Callable[[StalenessManager], None], dict[str, int]]] = {
    "enqueued": (StalenessManager.on_rollout_enqueued, {"enqueued": 1}),
    "submitted": (StalenessManager.on_rollout_submitted, {"enqueued": -1, "running": 1}),
    "accepted": (StalenessManager.on_rollout_accepted, {"running": -1, "accepted": 1}),
    "rejected": (StalenessManager.on_rollout_rejected, {"running": -1, "rejected": 1}),
    "released": (StalenessManager.on_rollout_released, {"accepted": -1}),
}


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_moves_its_counts_by_one_and_no_other(event: str) -> None:
    manager = a_manager()
    notify, moves = EVENTS[event]
    notify(manager)
    assert manager.get_stats() == RolloutStat(**moves)
    notify(manager)
    assert manager.get_stats() == RolloutStat(**{name: 2 * move for name, move in moves.items()})


def test_a_recovered_version_counts_as_many_accepted_as_it_was_trained_on() -> None:
    manager = a_manager(batch=8)
    for count in (manager.on_rollout_enqueued, manager.on_rollout_accepted, manager.on_rollout_rejected):
        count()
    manager.on_version_recovered(3)
    assert manager.get_stats() == RolloutStat(enqueued=1, running=-2, accepted=24, rejected=1)
    manager.on_version_recovered(0)
    assert manager.get_stats() == RolloutStat(enqueued=1, running=-2, accepted=0, rejected=1)
    with pytest.raises(ValueError, match="version=-1"):
        manager.on_version_recovered(-1)


def test_counts_that_were_taken_do_not_change() -> None:
    stat: Any = a_manager().get_stats()
    with pytest.raises(FrozenInstanceError):
        stat.accepted = 1


@given(
    version=st.integers(0, 9),
    staleness=st.integers(0, 4),
    batch=st.integers(1, 16),
    most=st.none() | st.integers(1, 50),
    running=st.integers(0, 60),
    accepted=st.integers(0, 200),
)
def test_the_capacity_is_the_smaller_of_the_slots_and_the_budget_that_are_left(
    version: int, staleness: int, batch: int, most: int | None, running: int, accepted: int
) -> None:
    manager = a_manager(version, most=most, batch=batch, staleness=staleness)
    for _ in range(running + accepted):
        manager.on_rollout_submitted()
    for _ in range(accepted):
        manager.on_rollout_accepted()
    slots = math.inf if most is None else most - running
    assert manager.get_capacity() == min(slots, (staleness + version + 1) * batch - (accepted + running))


def test_rejected_ones_cost_no_budget_and_a_new_version_brings_a_batch() -> None:
    engine = Engine()
    manager = StalenessManager(engine, None, 2, 1)
    manager.on_rollout_submitted()
    manager.on_rollout_rejected()
    assert manager.get_capacity() == 4
    for _ in range(5):
        manager.on_rollout_submitted()
    assert manager.get_capacity() == -1
    engine.version = 1
    assert manager.get_capacity() == 1


def test_the_pending_limit_is_what_could_start_at_one_version() -> None:
    assert a_manager(7, batch=4, staleness=2).get_pending_limit() == 12


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((object(), 1, 1, 0), TypeError, "no get_version"),
        ((Engine(), 0, 1, 0), ValueError, "max_concurrent_rollouts=0"),
        ((Engine(), 1, 0, 0), ValueError, "consumer_batch_size=0"),
        ((Engine(), 1, 1, -1), ValueError, "max_staleness=-1"),
        ((Engine(), 1.0, 1, 0), TypeError, "max_concurrent_rollouts=1.0"),
        ((Engine(), 1, True, 0), TypeError, "consumer_batch_size=True"),
    ],
)
def test_what_is_no_count_is_refused(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        StalenessManager(*arguments)


def test_counts_of_many_threads_at_once_are_all_there() -> None:
    manager, begin = a_manager(), threading.Barrier(4)

    def count() -> None:
        begin.wait()
        for _ in range(1_000):
            manager.on_rollout_enqueued()
            manager.on_rollout_submitted()
            manager.on_rollout_accepted()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.get_stats() == RolloutStat(accepted=4_000)


def test_the_version_provider_is_never_called_under_the_lock() -> None:
    class Curious(Engine):
        def get_version(self) -> int:
            in_thread(manager.on_rollout_enqueued)  # it would wait for the lock
            return 5

    manager = StalenessManager(Curious(), None, 2, 0)
    assert manager.get_capacity() == 12
    assert manager.get_stats().enqueued == 1
