"""What one task costs among others, from 1 to 100 000 in flight: the curves of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import _figures as figures
from _contenders import BARE_THREAD, OURS, Contender, areal_runner
from _executor_contenders import OURS_EXECUTING
from _report import CURVE
from _scale import Scale, figure
from _table import (
    BYTES,
    MICROSECONDS,
    MILLISECONDS,
    PERCENT,
    Absent,
    Figure,
    Measured,
    Reading,
    Row,
    part,
    plain,
    ratio,
)

COUNTS = (1, 10, 100, 1_000, 10_000, 100_000)
SECONDS = 0.25


def rows(scale: Scale, _url: str) -> Iterator[Row]:
    """Yield the rows."""
    counts = [count for count in COUNTS if count * scale.divisor <= COUNTS[-1]]
    measured: dict[str, Contender | Absent] = {
        "ours": OURS,
        "executor": OURS_EXECUTING,
        "threadsafe": BARE_THREAD,
        "areal": areal_runner(),
    }
    yield _in_flight(measured, counts)
    yield _bursts(measured, counts)


def _in_flight(measured: Mapping[str, Contender | Absent], counts: list[int]) -> Row:
    least, most = counts[0], counts[-1]
    return Row(
        "in-flight",
        f"what one task costs among {least} to {most:,} others, and what they cost by being there",
        _figures(measured, counts, figures.in_flight),
        (
            *_growths(measured, least, most, "trip", "trip"),
            *_growths(measured, least, most, "lag", "lag p99"),
            *(plain(part(_name(who, most), "idle"), label=f"{who}, idle CPU, %") for who in measured),
        ),
        MICROSECONDS,
        {"lag": MILLISECONDS, "idle": PERCENT, "memory": BYTES},
        rounds=3,
        seldom=_slowest(most),
    )


def _bursts(measured: Mapping[str, Contender | Absent], counts: list[int]) -> Row:
    ten, most = counts[1], counts[-1]
    return Row(
        "burst-size",
        f"what a task costs in bursts of {counts[0]} to {most:,}",
        _figures(measured, counts, figures.bursts_of),
        tuple(_growths(measured, ten, most, "burst", "task")),
        MICROSECONDS,
        rounds=3,
        seldom=_slowest(most),
    )


def _figures(
    measured: Mapping[str, Contender | Absent],
    counts: list[int],
    function: Callable[[Contender, int, float], Measured],
) -> dict[str, Figure | Absent]:
    return {
        _name(who, count): figure(function, contender, count, SECONDS)
        for who, contender in measured.items()
        for count in counts
    }


def _growths(measured: Iterable[str], least: int, most: int, of: str, what: str) -> Iterator[Reading]:
    for who in measured:
        label = f"{who}, {what}: {most:,} / {least}"
        yield ratio(_name(who, most), _name(who, least), of=of, label=label)


def _slowest(most: int) -> frozenset[str]:
    return frozenset(_name(who, most) for who in ("executor", "areal"))


def _name(who: str, count: int) -> str:
    return f"{who}{CURVE}{count}"
