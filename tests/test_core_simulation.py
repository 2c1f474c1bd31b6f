"""The executor's scheduling code through a day of training, on a clock whose time passes at once."""

from __future__ import annotations

import functools
import random
from dataclasses import asdict, dataclass

import pytest

from areal_core._executor.books import RolloutLedger
from areal_core._executor.report import StalenessReport
from areal_core._executor.rules import OnStale, Rules
from core_audit import balanced
from core_stage import Ending, Script, script
from core_world import World

pytestmark = pytest.mark.any_loop

DAY_S = 86_400.0
MEAN_S = 400.0
"""How long an episode takes on average, and the trainer for a batch."""
SLOTS = 64
BATCH = 32
ENDINGS: dict[Ending, float] = {"tokens": 0.80, "none": 0.12, "raises": 0.06, "times_out": 0.02}


@dataclass(frozen=True)
class Day:
    """What came of a day."""

    ledger: RolloutLedger
    report: StalenessReport
    batches: int
    seconds: float
    used_s: float
    """How long episodes ran, together."""

    @property
    def wasted(self) -> float:
        """Return which share of that was in vain."""
        return self.report.wasted_seconds / self.used_s


def a_day(max_staleness: int, on_stale: OnStale = "mask", sigma: float = 1.0, seed: int = 1) -> Day:
    """Train for a day; durations are lognormal with *sigma*."""
    dice = random.Random(seed)
    rules = Rules(
        batch=BATCH,
        max_staleness=max_staleness,
        most_samples=SLOTS,
        most_started=16 * SLOTS,
        on_stale=on_stale,
        max_unaccepted=64 * BATCH,
    )
    world = World(rules)

    def next_script() -> Script:
        seconds = MEAN_S * dice.lognormvariate(-(sigma**2) / 2, sigma)
        [ending] = dice.choices(list(ENDINGS), list(ENDINGS.values()))
        return script(seconds, ending, segments=4)

    batches = 0
    while world.clock.time() < DAY_S:
        assert len(world.prepare_batch(next_script)) == BATCH
        batches += 1
        world.clock.pass_over(MEAN_S)
        world.rise()
    assert len(world.stage.plays) == world.core.budget.samples <= SLOTS
    used_s = sum(episode.seconds for episode in world.stage.started)
    return Day(world.ledger, world.core.tally.report(), batches, world.clock.time(), used_s)


the_day = functools.cache(a_day)


@pytest.mark.parametrize("max_staleness", [0, 2, 4])
def test_a_day_ends_with_balanced_books_and_nothing_too_old(max_staleness: int) -> None:
    day = the_day(max_staleness)
    assert balanced(day.ledger), day.ledger
    assert day.report.delivered == day.batches * BATCH
    assert day.report.staleness_max <= max_staleness
    assert min(asdict(day.ledger)[status] for status in ("accepted", "rejected", "failed", "timed_out")) > 10


def test_a_day_goes_the_same_way_each_time() -> None:
    assert a_day(2) == the_day(2)


def test_in_a_day_more_staleness_trains_on_more_batches_and_wastes_less() -> None:
    """The known costs: synchronous training waits for the slowest; a bound drops what is slow."""
    none, some, more = the_day(0), a_day(2, "drop"), a_day(4, "drop")
    assert none.batches < 0.3 * some.batches
    assert none.wasted == 0.0
    assert some.wasted > 1.3 * more.wasted > 0.0
    assert some.report.t10 is not None and more.report.t10 is not None
    assert some.report.t10 < more.report.t10
