"""What the executor's core tells of staleness, and of what the bound costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from areal_core._executor.report import Tally, Trained
from areal_core._executor.requests import Request
from areal_core._executor.rollout import Lane
from areal_core.trajectory import TrajectoryDump
from core_audit import a_world
from core_stage import script
from core_world import World, batch_caller

pytestmark = pytest.mark.any_loop


def a_hundred(world: World, long_s: float) -> None:
    """Train on ninety short rollouts, and on ten that take *long_s* if they are there."""
    world.submit_all([script(1.0)] * 90 + [script(long_s)] * 10, Lane.BATCH)
    world.clock.pass_over(1.0)
    batch_caller(world, 90).take()
    world.clock.pass_over(long_s)
    world.rise()


def test_t10_is_nothing_when_the_longest_tenth_is_always_too_old() -> None:
    world = a_world(batch=100, max_staleness=0, on_stale="drop")
    a_hundred(world, long_s=5.0)
    assert world.core.tally.report().t10 == 0.0
    assert world.core.tally.report().wasted_seconds == 50.0
    a_hundred(world, long_s=5.0)
    a_hundred(world, long_s=5.0)
    [t10] = world.told.t10s
    assert t10 < 0.8


def test_t10_is_one_when_long_ones_are_trained_on_like_others() -> None:
    world = a_world(batch=100, max_staleness=0)
    world.submit_all([script(1.0)] * 90 + [script(5.0)] * 10, Lane.BATCH)
    world.clock.pass_over(5.0)
    batch_caller(world, 100).take()
    assert world.core.tally.report().t10 == 1.0 and not world.told.t10s


def test_t10_counts_a_rollout_by_the_share_of_its_tokens_that_is_trained_on() -> None:
    world = a_world(batch=100, max_staleness=1, on_stale="mask")
    world.submit_all([script(1.0)] * 90 + [script(5.0, segments=2)] * 10, Lane.BATCH)
    world.clock.pass_over(2.0)
    world.rise()
    world.clock.pass_over(3.0)  # the long ones have a token of version 0, and one of 1
    assert len(batch_caller(world, 90).take()) == 90
    world.rise()
    assert [outcome.tokens_masked for outcome in batch_caller(world, 10).take()] == [1] * 10
    t10 = world.core.tally.report().t10
    assert t10 is not None and t10 == pytest.approx(0.5 / 0.95)
    assert world.core.tally.report().tokens_masked == 10


# -- the tally alone -------------------------------------------------------------------------------


def trained(seconds: float = 1.0, *, tokens: int = 1, masked: int = 0, task_id: int = 0) -> Trained:
    return Trained(task_id, seconds, 0, tokens, masked)


def deliver(tally: Tally, count: int, one: Trained | None = None) -> None:
    for _ in range(count):
        tally.delivered(one or trained())


def test_before_anything_is_delivered_nothing_is_stale() -> None:
    report = Tally().report()
    assert (report.delivered, report.staleness_mean, report.staleness_max, report.t10) == (0, 0.0, 0, None)


def test_what_is_told_to_the_tally_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        trained().tokens = 2  # type: ignore[misc]


def test_t10_needs_a_hundred_and_is_of_the_last_thousand() -> None:
    tally = Tally()
    tally.wasted(9.0, 9.0)
    deliver(tally, 98)
    assert tally.report().t10 is None
    deliver(tally, 1)
    assert tally.report().t10 == pytest.approx(0.9 / 0.99)
    deliver(tally, 900)
    assert tally.report().t10 == pytest.approx(0.99 / 0.999)
    deliver(tally, 1)
    assert tally.report().t10 == 1.0


def test_t10_is_of_the_longest_tenth() -> None:
    tally = Tally()
    deliver(tally, 99)
    tally.wasted(2.0, 2.0)
    deliver(tally, 10, trained(3.0))
    assert tally.report().t10 == pytest.approx((10 / 11) / (109 / 110))


def test_one_without_tokens_counts_as_trained_on() -> None:
    tally = Tally()
    deliver(tally, 90)
    deliver(tally, 10, trained(5.0, tokens=0))
    assert tally.report().t10 == 1.0


def test_of_t10_too_one_that_came_back_is_no_part() -> None:
    tally = Tally()
    deliver(tally, 100)
    half = trained(9.0, masked=1)
    tally.delivered(half)
    assert tally.report().t10 != 1.0
    tally.came_back(half)
    assert (tally.report().t10, tally.report().delivered) == (1.0, 100)


def test_one_may_come_back_after_a_thousand_others() -> None:
    tally = Tally()
    first = trained(9.0, masked=1)
    tally.delivered(first)
    deliver(tally, 1000)
    tally.came_back(first)
    assert tally.report().delivered == 1000


@pytest.mark.parametrize(("fair", "told"), [(0, [100, 1100]), (100, [200, 1200])])
def test_unfairness_is_looked_for_every_hundred_and_told_every_thousand(fair: int, told: list[int]) -> None:
    tally, seen = Tally(), list[int]()
    for number in range(1, 1301):
        if number <= fair or number % 2:
            deliver(tally, 1)
        else:
            tally.wasted(9.0, 9.0)
        if tally.warning() is not None:
            seen.append(number)
    assert seen == told


def test_four_fifths_are_fair() -> None:
    tally = Tally()
    for _ in range(32):
        tally.wasted(1.0, 1.0)
    deliver(tally, 57)
    deliver(tally, 1, trained(masked=1))
    deliver(tally, 10, trained(9.0, masked=1))
    assert tally.report().t10 == 0.8
    assert tally.warning() is None


# -- what it counts --------------------------------------------------------------------------------


def test_the_report_says_how_stale_what_was_delivered_is() -> None:
    world = a_world(batch=1, max_staleness=3, on_stale="drop")
    for number in range(3):
        world.submit_all([script(1.0, segments=2)] * 2, Lane.BATCH)
        world.clock.pass_over(1.0)
        if number:
            world.rise()
    batch_caller(world, 4).take()
    report = world.core.tally.report()
    assert (report.delivered, report.tokens_trained) == (4, 8)
    assert (report.staleness_mean, report.staleness_max) == (2.0, 2)


def test_a_batch_that_comes_back_from_the_last_line_of_its_call_is_reported_once() -> None:
    """The core had noted that its caller has it, when a Ctrl-C came."""
    told: list[Trained] = []
    reports = []
    for is_interrupted in (False, True):
        world = a_world(batch=100, max_staleness=2)
        world.core.tally.on_delivered = told.append
        world.submit_all([script(1.0)] * 90 + [script(5.0)] * 10, Lane.BATCH)
        world.clock.pass_over(5.0)
        world.rise()
        world.on_delivery = lambda request, outcomes: None  # it comes twice
        if is_interrupted:
            caller = batch_caller(world, 90)
            caller.take()
            assert world.core.tally.report().delivered == 90
            caller.give_up(KeyboardInterrupt())
            report = world.core.tally.report()
            assert (report.delivered, report.tokens_trained, report.staleness_max) == (0, 0, 0)
        batch_caller(world, 90).take()
        batch_caller(world, 10).take()
        reports.append(world.core.tally.report())
        assert len(told) == 100
        told.clear()
    assert reports[0] == reports[1] and reports[0].t10 is not None


def test_a_batch_that_comes_back_is_dumped_once_for_each_version(tmp_path: Path) -> None:
    world = a_world(batch=2, max_staleness=2)
    world.on_delivery = lambda request, outcomes: None  # it comes twice
    world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    with TrajectoryDump(tmp_path) as dump:
        world.handover._dump = dump
        for rises in (0, 1, 0):
            world.rise(rises)
            caller = batch_caller(world)
            caller.take()
            caller.give_up(KeyboardInterrupt())
    lines = {path.name: len(path.read_text().splitlines()) for path in tmp_path.iterdir()}
    assert lines == {"0.jsonl": 2, "1.jsonl": 2}


def test_a_batch_whose_caller_was_interrupted_on_the_way_out_is_not_reported() -> None:
    world = a_world()
    world.submit(script(1.0))
    world.clock.pass_over(1.0)
    request: Request = world.ask()
    world.set_busy(True)
    world.read_version()
    world.handover.hand_out(request)
    world.returned.append(request)
    world.set_busy(False)
    assert world.core.tally.report().delivered == 0 and world.ledger.finished == 1


def test_of_what_came_back_it_is_told_once_and_of_all_else_that_is_delivered_meanwhile_too() -> None:
    told: list[int] = []
    world = a_world(batch=100, max_staleness=2)
    world.core.tally.on_delivered = lambda trained: told.append(trained.task_id)
    world.on_delivery = lambda request, outcomes: None  # some come twice
    in_batches = world.submit_all([script(1.0)] * 2, Lane.BATCH)
    world.clock.pass_over(1.0)
    caller = batch_caller(world, 2)
    caller.take()
    caller.give_up(KeyboardInterrupt())
    [other] = world.submit_all([script(1.0)], Lane.OPEN)
    world.clock.pass_over(1.0)
    world.caller(count=1).take()
    batch_caller(world, 2).take()
    ids = [one.task_id for one in in_batches]
    assert (sorted(told[:2]), told[2:]) == (ids, [other.task_id])


def test_an_id_that_came_back_and_arrived_without_a_trajectory_is_another_when_it_is_used_again() -> None:
    told: list[Trained] = []
    tally, one, again = Tally(), Trained(7, 1.0, 0, 5, 0), Trained(7, 2.0, 0, 5, 0)
    tally.on_delivered = told.append
    tally.delivered(one)
    tally.came_back(one)
    tally.arrived([7])  # it was too old by then
    tally.delivered(again)
    assert told == [one, again]
