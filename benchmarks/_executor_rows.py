"""The rows of the executor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import _executor_figures as executor
import _figures as figures
from _contenders import BARE_THREAD, OURS, RAW, Contender, Work
from _executor_contenders import (
    BY_HAND,
    OURS_EXECUTING,
    OURS_PRODUCING,
    OURS_WITH_JOURNAL,
    Queueing,
    areal_dispatching,
    areal_producing,
    trajectory,
)
from _scale import LONGER, PROFILED_S, Scale, figure
from _table import MICROSECONDS, Absent, Figure, Reading, Row, Unit, plain, ratio

SLOTS = 512


def rows(scale: Scale, _url: str) -> Iterator[Row]:
    """Yield the rows."""
    areal = areal_producing()
    yield _episodes(scale.of(5_000))
    yield _slots(areal, scale.seconds)
    yield _prepare(areal, scale.of(20))
    yield _admission(areal, scale)


async def _episode() -> int:
    """Do by hand what an episode of the contenders does, and say that all is well as they do."""
    await figures.nothing()
    return 1 if trajectory(0) else 0


def _episodes(count: int) -> Row:
    def cost(contender: Contender | Absent, work: Work) -> Figure | Absent:
        return figure(figures.episodes, contender, count, work)

    return Row(
        "episodes",
        f"{count:,} instant episodes submitted, all collected: what one takes",
        {
            "raw": cost(RAW, _episode),
            "runner": cost(OURS, _episode),
            "ours": cost(OURS_EXECUTING, figures.nothing),
            "areal": cost(areal_dispatching(), figures.nothing),
        },
        (
            ratio("ours", "raw"),
            ratio("ours", "runner", label="ours / our runner"),
            ratio("ours", "areal", label="ours / areal's dispatcher"),
            Reading("ours, episodes per second", lambda values: 1 / values["ours"]),
            Reading("areal's dispatcher, per second", lambda values: 1 / values["areal"]),
        ),
        MICROSECONDS,
        rounds=7,
        profiles={
            "raw": partial(figures.bursts_of, RAW, count, PROFILED_S, _episode),
            "ours": partial(figures.bursts_of, OURS_EXECUTING, count, PROFILED_S),
        },
    )


def _slots(areal: Queueing | Absent, seconds: float) -> Row:
    median_s = 0.25
    return Row(
        "slots",
        f"busy share of {SLOTS} slots, lognormal episodes of {median_s} s, batches of {SLOTS // 2}; ideal 1",
        {
            "by hand": partial(executor.slots_used_by_hand, SLOTS, median_s, seconds),
            "ours": figure(executor.slots_used, OURS_PRODUCING, SLOTS, median_s, seconds),
            "areal": figure(executor.slots_used, areal, SLOTS, median_s, seconds),
        },
        (
            plain("ours"),
            plain("by hand"),
            plain("areal", label="areal's dispatcher"),
            ratio("ours", "by hand"),
        ),
        Unit(""),
        seldom=frozenset(("areal",)),
    )


def _prepare(areal: Queueing | Absent, batches: int) -> Row:
    size = 256
    return Row(
        "prepare",
        f"prepare_batch, per episode: {batches} batches of {size} that yield once, a version after each",
        {
            "by hand": figure(executor.preparing, BY_HAND, batches, size),
            "ours": figure(executor.preparing, OURS_PRODUCING, batches, size),
            "with journal": figure(executor.preparing, OURS_WITH_JOURNAL, batches, size),
            "areal": figure(executor.preparing, areal, batches, size),
        },
        (
            ratio("ours", "by hand", of="cpu"),
            ratio("areal", "by hand", of="cpu", label="areal's dispatcher / by hand, cpu"),
            ratio("ours", "by hand", of="time"),
            ratio("areal", "by hand", of="time", label="areal's dispatcher / by hand, time"),
            ratio("with journal", "ours", of="cpu", label="with a journal / without, cpu"),
            ratio("with journal", "ours", of="time", label="with a journal / without, time"),
            Reading(
                "a journal adds, us of cpu",
                lambda values: 1e6 * (values["with journal: cpu"] - values["ours: cpu"]),
            ),
        ),
        MICROSECONDS,
        rounds=7,
        profiles={
            "by hand": partial(executor.preparing, BY_HAND, LONGER * batches, size),
            "ours": partial(executor.preparing, OURS_PRODUCING, LONGER * batches, size),
        },
    )


def _admission(areal: Queueing | Absent, scale: Scale) -> Row:
    pending = scale.of(2_000)
    return Row(
        "admission",
        f"from a new version to the first step of the episode it lets start, {pending:,} pending",
        {
            "by hand": figure(executor.admission_by_hand, BARE_THREAD, scale.of(500)),
            "ours": figure(executor.admission, OURS_PRODUCING, scale.of(500), pending),
            "areal": figure(executor.admission, areal, 10, pending),
        },
        (ratio("ours", "by hand"), ratio("areal", "ours", label="areal's dispatcher / ours")),
        MICROSECONDS,
        rounds=7,
    )
