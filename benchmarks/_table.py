"""What a row of the table is made of, and how its numbers come out of several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from _children import MeasurementError

Measured = float | Mapping[str, float]
"""One number, or several by the names of its parts."""
Figure = Callable[[], Measured]
"""Measures; called once per round, in a process of its own."""
Values = Mapping[str, float]
"""The figures of one round, by the name of who made them; of one with parts, by `part`."""


def part(figure: str, name: str) -> str:
    """Return the name of one part of a figure."""
    return f"{figure}: {name}"


@dataclass(frozen=True)
class Absent:
    """Stands for what cannot be measured here."""

    why: str


@dataclass(frozen=True)
class Unit:
    name: str
    size: float = 1.0
    """How much of what a figure returns is one of it."""
    is_rate: bool = False
    """Whether more of it is better."""


MILLISECONDS = Unit("ms", 1e-3)
MICROSECONDS = Unit("us", 1e-6)
PERCENT = Unit("%")
BYTES = Unit("bytes")


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
    compares: tuple[str, str] | None = None
    """The names in `Values` of what it compares, the one in question first; None: it is no ratio."""


def ratio(top: str, bottom: str, aim: Aim | None = None, *, of: str = "", label: str = "") -> Reading:
    """Return the reading that divides one figure by another; *of* both it takes the part of that name."""
    above, below = (part(top, of), part(bottom, of)) if of else (top, bottom)
    label = label or f"{top} / {bottom}{of and ', '}{of}"
    return Reading(label, lambda values: values[above] / values[below], aim, (above, below))


def plain(name: str, aim: Aim | None = None, *, label: str = "", scale: float = 1.0) -> Reading:
    """Return the reading that is one figure as it stands, divided by *scale*."""
    return Reading(label or name, lambda values: values[name] / scale, aim)


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    figures: Mapping[str, Figure | Absent]
    readings: tuple[Reading, ...]
    unit: Unit = MILLISECONDS
    units: Mapping[str, Unit] = field(default_factory=dict)
    """Of parts of figures, by their names; *unit* is that of all others."""
    rounds: int = 5
    """How often each figure is taken: more often where the ratio is noisy."""
    profiles: Mapping[str, Figure | Absent] = field(default_factory=dict)
    """What is profiled in a figure's place, with more of what is measured and less of what goes before."""
    seldom: frozenset[str] = frozenset()
    """Figures of every other round: slow ones, of which no aim speaks."""

    def unit_of(self, name: str) -> Unit:
        """Return the unit of a figure, or of a part of one."""
        return self.units.get(name.partition(": ")[2], self.unit)


@dataclass(frozen=True)
class Spread:
    """Several values of one number."""

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    count: int
    """How many values."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        if len(values) == 1:
            return cls(values[0], (values[0], values[0]), (values[0], values[0]), 1)
        lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, (lower, upper), (min(values), max(values)), len(values))


@dataclass(frozen=True)
class Line:
    """A reading with what came out."""

    reading: Reading
    spread: Spread

    @property
    def verdict(self) -> str:
        return self.reading.aim.verdict(self.spread.median) if self.reading.aim else ""

    @property
    def is_clear(self) -> bool:
        """Whether the quartiles say what the median does."""
        aim = self.reading.aim
        return aim is None or len({aim.verdict(value) for value in self.spread.quartiles}) == 1


@dataclass(frozen=True)
class Results:
    """What came out of the rounds of a row."""

    rounds: list[dict[str, float]]
    absent: dict[str, str]
    """Why figures were not taken, by their names."""
    failed: dict[str, str]
    """The errors of those that could not be."""


def measure(
    row: Row,
    rounds: int,
    take: Callable[[Figure], Measured],
    on_round: Callable[[int], object] = lambda _: None,
) -> Results:
    """Take the figures of *rounds* rounds. Every other goes backwards, so that drift cancels out.

    A figure that fails is not taken again. *on_round* is called with the number of each round.
    """
    figures = {name: figure for name, figure in row.figures.items() if not isinstance(figure, Absent)}
    absent = {name: figure.why for name, figure in row.figures.items() if isinstance(figure, Absent)}
    results = Results([], absent, {})
    for count in range(rounds):
        on_round(count)
        values: dict[str, float] = {}
        is_odd = count % 2 == 1
        for name in list(figures)[::-1] if is_odd else list(figures):
            if is_odd and name in row.seldom:
                continue
            try:
                values |= _named(name, take(figures[name]))
            except MeasurementError as error:
                results.failed[name] = str(error)
                del figures[name]
        results.rounds.append(values)
    return results


def _named(name: str, measured: Measured) -> dict[str, float]:
    if isinstance(measured, Mapping):
        return {part(name, key): value for key, value in measured.items()}
    return {name: measured}


def lines(row: Row, results: Results) -> Iterator[Line]:
    """Read each line off each round, then take the medians: a ratio compares what ran side by side.

    Readings of what was not measured are left out.
    """
    for reading in row.readings:
        found = [value for values in results.rounds for value in _read(reading, values)]
        if found:
            yield Line(reading, Spread.of(found))


def _read(reading: Reading, values: Values) -> Iterator[float]:
    """Yield what *reading* is in a round, if all it needs was taken in that."""
    try:
        yield reading.read(values)
    except KeyError:
        return


def medians(results: Results) -> dict[str, float]:
    """Return the median figures themselves."""
    names = dict.fromkeys(name for values in results.rounds for name in values)
    return {
        name: statistics.median(values[name] for values in results.rounds if name in values) for name in names
    }


def number(value: float) -> str:
    """Return *value* with three digits, more where it is larger than that."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
