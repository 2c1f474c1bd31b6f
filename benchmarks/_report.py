"""What a whole run came to: as blocks while it goes on, as one table at its end, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _table import Aim, Line, Results, Row, Spread, lines, medians, number, part

COLUMNS = "  {:<38}{:>8}   {:<17}{:<17}{:<22}{}"
TITLES = ("", "median", "quartiles", "min-max", "aim", "met")
CURVE = " @ "
"""Stands between who is measured and the number in flight in the names of figures that make curves."""


@dataclass(frozen=True)
class Outcome:
    """A row with what came out."""

    section: str
    row: Row
    results: Results
    seconds: float
    profiles: list[str] = field(default_factory=list)
    """For each aim that was missed, where the time goes."""

    @property
    def lines(self) -> list[Line]:
        """What is read off the row."""
        return list(lines(self.row, self.results))

    def missed(self) -> Iterator[Line]:
        """Yield the lines whose aim is not met."""
        return (line for line in self.lines if line.verdict in ("missed", "FAILED"))

    def failures(self) -> Iterator[str]:
        """Say what must not be."""
        for name in self.results.failed:
            yield f"{self.row.name}: {name} was not measured"
        for line in self.lines:
            if line.verdict == "FAILED":
                reading = line.reading
                yield f"{self.row.name}: {reading.label} is {number(line.spread.median)}, {reading.aim}"


def block(outcome: Outcome) -> Iterator[str]:
    """Yield the lines that show one row, below its title."""
    for line in outcome.lines:
        yield shown(line)
    for name, why in outcome.results.absent.items():
        yield f"  {name} not measured: {_first_line(why)}"
    for name, why in outcome.results.failed.items():
        yield f"  {name} FAILED: {why}"
    yield from _medians(outcome)
    yield f"  {len(outcome.results.rounds)} rounds, {outcome.seconds:.0f} s"


def heading() -> str:
    """Return the titles of the columns."""
    return COLUMNS.format(*TITLES).rstrip()


def shown(line: Line) -> str:
    """Return one line of a block."""
    return COLUMNS.format(line.reading.label, *_cells(line)).rstrip()


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the whole table."""
    yield heading()
    for outcome in outcomes:
        yield f"{outcome.row.name}: {outcome.row.title}"
        yield from map(shown, outcome.lines)
        for name, why in {**outcome.results.absent, **outcome.results.failed}.items():
            yield f"  {name} not measured: {_first_line(why)}"


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield how many aims there are, and which are not met by how much."""
    with_aim = [line for outcome in outcomes for line in outcome.lines if line.reading.aim]
    missed = [(outcome, line) for outcome in outcomes for line in outcome.missed()]
    yield f"{len(with_aim) - len(missed)} of {len(with_aim)} aims are met"
    for outcome, line in missed:
        aim = line.reading.aim
        assert aim is not None
        value = number(line.spread.median)
        yield f"missed: {outcome.row.name}, {line.reading.label}: {value}, {aim}{_by(aim, line.spread)}"


def _by(aim: Aim, spread: Spread) -> str:
    if aim.limit == 0 or spread.median == 0:
        return ""
    share = spread.median / aim.limit if aim.at_most else aim.limit / spread.median
    return f", by {100 * (share - 1):.0f} %"


def _cells(line: Line) -> tuple[str, ...]:
    spread = line.spread
    quartiles, extremes = ("-".join(map(number, pair)) for pair in (spread.quartiles, spread.extremes))
    if spread.count == 1:
        quartiles = extremes = "one value"
    verdict = line.verdict if line.is_clear else f"{line.verdict}, not clearly"
    return number(spread.median), quartiles, extremes, str(line.reading.aim or ""), verdict


def _medians(outcome: Outcome) -> Iterator[str]:
    """Yield the median figures themselves, for orientation; those that make curves as a table."""
    curves = _curves([outcome])
    for what, found in curves.items():
        unit = outcome.row.unit_of(part("", what)).name
        counts = sorted({point[0] for points in found.values() for point in points})
        yield f"  {what + ', ' + unit:<18}" + "".join(f"{count:>10,.0f}" for count in counts)
        for who, points in found.items():
            there = {point[0]: number(point[1]) for point in points}
            yield f"    {who:<16}" + "".join(f"{there.get(count, ''):>10}" for count in counts)
    if not curves:
        yield f"  medians: {', '.join(_words(outcome))}"


def _words(outcome: Outcome) -> Iterator[str]:
    for name, value in medians(outcome.results).items():
        unit = outcome.row.unit_of(name)
        yield f"{name} {number(value / unit.size)} {unit.name}".rstrip()


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def document(about: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return all that was found, as JSON has it."""
    return {**about, "rows": [_row(outcome) for outcome in outcomes], "curves": _curves(outcomes)}


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a document to *path*, whose directory need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def _row(outcome: Outcome) -> dict[str, Any]:
    row, results = outcome.row, outcome.results
    names = list(medians(results))
    return {
        "section": outcome.section,
        "name": row.name,
        "title": row.title,
        "rounds": len(results.rounds),
        "seconds": round(outcome.seconds, 1),
        "readings": [_reading(line) for line in outcome.lines],
        "figures": {name: _figure(outcome, name) for name in names},
        "absent": results.absent,
        "failed": results.failed,
        "profiles": outcome.profiles,
    }


def _reading(line: Line) -> dict[str, Any]:
    aim = line.reading.aim
    return {
        "label": line.reading.label,
        **_spread(line.spread),
        "aim": None if aim is None else {**dataclasses.asdict(aim), "met": line.verdict == "ok"},
    }


def _figure(outcome: Outcome, name: str) -> dict[str, Any]:
    unit = outcome.row.unit_of(name)
    values = [values[name] / unit.size for values in outcome.results.rounds if name in values]
    return {"unit": unit.name, **_spread(Spread.of(values)), "values": values}


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "values": spread.count,
        "quartiles": list(spread.quartiles),
        "min": spread.extremes[0],
        "max": spread.extremes[1],
    }


def _curves(outcomes: Iterable[Outcome]) -> dict[str, dict[str, list[list[float]]]]:
    """Return, by what is measured and of whom, points of number in flight, median, least and greatest."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for outcome in outcomes:
        for name in medians(outcome.results):
            figure, _, what = name.partition(": ")
            who, _, count = figure.partition(CURVE)
            if count:
                found = _figure(outcome, name)
                point = [float(count), found["median"], found["min"], found["max"]]
                curves.setdefault(what, {}).setdefault(who, []).append(point)
    return curves
