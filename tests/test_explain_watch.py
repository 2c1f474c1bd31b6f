"""When it is said that nothing ends, in a time that passes at once."""

from __future__ import annotations

from typing import Any

import pytest

from areal_core._executor.stuck import StuckWatch
from areal_core.config import InferenceEngineConfig
from conftest import MakeExecutor
from core_stage import VirtualClock
from doors import Door, turn_loop
from executor_tools import WAIT_S, Playing, answering, trajectory_of
from logged import LogLines

pytestmark = pytest.mark.any_loop


class Watched:
    """A watch that warns after ten seconds, and when it did."""

    def __init__(self, warning_s: float | None = 10.0) -> None:
        self.clock = VirtualClock()
        self.is_over = False
        self.said: list[float] = []
        self.watch = StuckWatch(warning_s, self.clock, lambda: self.is_over)
        self.watch.say = lambda: self.said.append(self.clock.time())


def test_it_is_said_in_time_and_again_after_twice_as_long() -> None:
    watched = Watched()
    watched.watch.began_to_wait()
    watched.clock.pass_over(100.0)
    assert watched.said == [10.0, 20.0, 40.0, 80.0]


def test_an_end_begins_it_anew() -> None:
    watched = Watched()
    for _ in range(3):
        watched.watch.began_to_wait()
    watched.clock.pass_over(25.0)
    watched.watch.ended()
    watched.clock.pass_over(9.0)
    watched.watch.ended()
    watched.clock.pass_over(30.0)
    assert watched.said == [10.0, 20.0, 44.0, 54.0]


def test_nothing_is_said_and_no_timer_set_while_there_is_nothing() -> None:
    watched = Watched()
    watched.clock.pass_over(50.0)
    watched.watch.began_to_wait()
    watched.watch.ended()
    watched.clock.pass_over(50.0)
    assert watched.said == []
    assert not watched.clock.step()
    watched.watch.began_to_wait()
    assert watched.watch.seconds == 0
    watched.clock.pass_over(10.0)
    assert watched.said == [110.0]


def test_time_without_rollouts_does_not_count() -> None:
    watched = Watched()
    watched.watch.began_to_wait()
    watched.clock.pass_over(1.0)
    watched.watch.ended()
    watched.clock.pass_over(8.0)
    watched.watch.began_to_wait()
    watched.clock.pass_over(9.0)
    assert watched.said == []
    watched.clock.pass_over(1.0)
    assert watched.said == [19.0]


def test_ten_thousand_rollouts_have_one_timer() -> None:
    watched = Watched()
    set_timers = 0
    call_later = watched.clock.call_later

    def counting(*args: Any) -> Any:
        nonlocal set_timers
        set_timers += 1
        return call_later(*args)

    watched.clock.call_later = counting  # type: ignore[assignment,method-assign]
    watched.watch = StuckWatch(10.0, watched.clock, lambda: False)
    for _ in range(10_000):
        watched.watch.began_to_wait()
    for _ in range(9_999):
        watched.clock.pass_over(0.001)
        watched.watch.ended()
    assert set_timers == 1
    watched.clock.pass_over(0.1)
    assert set_timers == 2


@pytest.mark.parametrize("warning_s", [None, 10.0])
def test_no_timer_is_set_where_none_is_wanted_or_the_loop_has_ended(warning_s: float | None) -> None:
    watched = Watched(warning_s)
    watched.is_over = warning_s is not None
    watched.watch.began_to_wait()
    assert not watched.clock.step()


def test_rollouts_run_again_pend_and_end_are_counted_once_each(
    make_executor: MakeExecutor, loop_name: str
) -> None:
    """Whatever becomes of rollouts, none is left in the count when none is there."""
    executor = make_executor(consumer_batch_size=2, on_stale="requeue")
    assert executor._shift is not None
    watch, door, engine = executor._shift.explainer._stuck, Door(), executor._engine
    executor.submit(trajectory_of(1, versions=0), Playing(door.walk_through), task_id=1)
    executor.submit(2, answering, task_id=2)
    executor.submit(3, answering, is_eval=True)
    door.wait_for()
    turn_loop(executor.runner)
    assert watch._open == 1
    for engine.version in (1, 2, 3):  # type: ignore[attr-defined]
        executor.on_version_changed()
        turn_loop(executor.runner)
    executor.pause()
    executor.submit(4, answering, task_id=4)
    executor.cancel(4)
    door.open()
    executor.resume()
    turn_loop(executor.runner)
    executor.wait_outcomes(3, WAIT_S)
    assert executor.ledger.requeued > 0
    assert watch._open == 0


def test_what_cannot_be_explained_costs_a_line_and_nothing_else(
    make_executor: MakeExecutor, log_lines: LogLines, loop_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise SystemExit

    monkeypatch.setattr("areal_core._executor.explaining.stack_of", fail)
    executor, door = make_executor(stuck_warning=0.1), Door()
    executor.submit(trajectory_of(1), Playing(door.walk_through))
    assert log_lines.wait_for("explaining_failed", WAIT_S).level == "error"
    door.open()
    assert len(executor.wait(1, WAIT_S)) == 1


@pytest.mark.parametrize("odd", [0, -1.0, float("nan"), "a", True])
def test_a_setting_that_is_no_time_is_refused(odd: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="stuck_warning"):
        InferenceEngineConfig(stuck_warning=odd)


def test_the_setting_is_five_minutes_and_may_be_none() -> None:
    assert InferenceEngineConfig().stuck_warning == 300.0
    assert InferenceEngineConfig(stuck_warning=None).stuck_warning is None
