"""The rows of rollouts that are played by workers on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

from _scale import Scale, figure
from _table import MICROSECONDS, Absent, Aim, Reading, Row, Unit, part, plain, ratio

EPISODE_S = 0.1
SLOTS = 64
_IDEAL = SLOTS / EPISODE_S


def rows(scale: Scale, _url: str) -> Iterator[Row]:
    """Yield the rows."""
    yield _leases(scale.of(5_000), scale.of(50_000))
    yield _workers(7 * scale.seconds)  # so long that the beginning and the end hardly count


def _leases(calls: int, episodes: int) -> Row:
    if find_spec("ray") is None:
        absent = Absent("ray is not installed")
        called, leased = figure(len, absent), figure(len, absent)
    else:
        import _distributed_figures as far

        called, leased = partial(far.called, calls), partial(far.leased, episodes)
    return Row(
        "leases",
        f"{episodes:,} instant episodes of 64 tokens on one worker; beside an async actor called for each",
        {"ray": called, "ours": leased},
        (
            Reading(
                "an actor called for each / ours",
                lambda values: values["ray"] / values[part("ours", "time")],
                Aim(8.0, at_most=False, must=8.0),
                compares=("ray", part("ours", "time")),
            ),
            Reading("ours, us of the driver's cpu", lambda values: 1e6 * values[part("ours", "driver cpu")]),
        ),
        MICROSECONDS,
        rounds=7,
    )


def _workers(seconds: float) -> Row:
    if find_spec("ray") is None:
        absent = Absent("ray is not installed")
        one, two = figure(len, absent), figure(len, absent)
    else:
        import _distributed_figures as far

        one = partial(far.carried, 1, seconds, SLOTS, EPISODE_S)
        two = partial(far.carried, 2, seconds, SLOTS, EPISODE_S)
    return Row(
        "workers",
        f"episodes of {EPISODE_S} s that end per second, {SLOTS} slots a worker; ideal {_IDEAL:.0f} each",
        {"one": one, "two": two},
        (
            ratio("two", "one", Aim(1.95, at_most=False), of="rate", label="two workers / one"),
            plain(part("two", "core"), label="share of a core, the busier of two"),
        ),
        Unit("per s", is_rate=True),
        rounds=3,
    )
