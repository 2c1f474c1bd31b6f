"""What a row of the table is made of, and how its numbers come out of several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

Figure = Callable[[], float]
"""Measures one number; called once per round, in a process of its own."""
Values = Mapping[str, float]
"""The figures of one round, by the name of who made them."""


@dataclass(frozen=True)
class Aim:
    limit: float
    at_most: bool = True
    must: float | None = None
    """The limit that fails the benchmark; None where a missed aim is only shown."""

    def __str__(self) -> str:
        words = f"{'at most' if self.at_most else 'at least'} {self.limit:g}"
        return words if self.must in (None, self.limit) else f"{words} (must {self.must:g})"

    def verdict(self, value: float) -> str:
        if self.must is not None and not self._holds(value, self.must):
            return "FAILED"
        return "ok" if self._holds(value, self.limit) else "missed"

    def _holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.at_most else value >= limit


@dataclass(frozen=True)
class Reading:
    """One line of the table, read off the figures of each round."""

    label: str
    read: Callable[[Values], float]
    aim: Aim | None = None


def ratio(top: str, bottom: str, aim: Aim | None = None) -> Reading:
    return Reading(f"{top} / {bottom}", lambda values: values[top] / values[bottom], aim)


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    figures: Mapping[str, Figure]
    readings: tuple[Reading, ...]
    unit: str = "ms"
    per_unit: float = 1e-3
    """How much of what a figure returns is one *unit*."""
    more: int = 1
    """How many times the usual number of pairs: for what is quick to take and noisy."""


@dataclass(frozen=True)
class Spread:
    """Several values of one number."""

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]

    @classmethod
    def of(cls, values: list[float]) -> Self:
        lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, (lower, upper), (min(values), max(values)))


@dataclass(frozen=True)
class Line:
    """A reading with what came out."""

    reading: Reading
    spread: Spread

    @property
    def verdict(self) -> str:
        return self.reading.aim.verdict(self.spread.median) if self.reading.aim else ""


def measure(row: Row, pairs: int, take: Callable[[Figure], float]) -> list[dict[str, float]]:
    """Return the figures of each round. Every other round goes backwards, so that drift cancels out."""
    results = []
    for count in range(pairs * row.more):
        names = list(row.figures) if count % 2 == 0 else list(row.figures)[::-1]
        results.append({name: take(row.figures[name]) for name in names})
    return results


def lines(row: Row, results: list[dict[str, float]]) -> Iterator[Line]:
    """Read each line off each round, then take the medians: a ratio compares what ran side by side."""
    for reading in row.readings:
        yield Line(reading, Spread.of([reading.read(values) for values in results]))


def medians(row: Row, results: list[dict[str, float]]) -> str:
    """Return the median figures themselves, for orientation."""
    middle = {name: statistics.median(values[name] for values in results) for name in row.figures}
    return f"{', '.join(f'{name} {number(middle[name] / row.per_unit)}' for name in middle)} {row.unit}"


def number(value: float) -> str:
    """Return *value* with three digits, more where it is larger than that."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
