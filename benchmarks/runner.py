"""Measure AsyncTaskRunner against the raw loop and against the published areal wheel, in one run.

Prints one block per row of the table as it is measured. Ends with 1 when something failed that must
hold, with 2 when the wheel cannot be had. What the rows mean: README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

from _children import MeasurementError, in_child
from _contenders import BOUND, RunnerContender
from _figures import HOUR_S
from _published import RELEASE, WheelError, published_runner
from _rows import FULL, QUICK, Runners, Scale, all_rows
from _table import Line, Row, lines, measure, medians, number
from areal_core.async_task_runner import AsyncTaskRunner


def main() -> int:
    """Measure what was asked for and return the exit status."""
    try:
        areal = published_runner()
    except WheelError as error:
        print(f"{RELEASE} cannot be had, so there is nothing to compare with:\n{error}", file=sys.stderr)
        return 2
    runners = Runners(
        ours=RunnerContender(partial(AsyncTaskRunner, BOUND)),
        ours_with_deadline=RunnerContender(partial(AsyncTaskRunner, BOUND, task_timeout=HOUR_S)),
        areal=RunnerContender(partial(areal, BOUND)),
    )
    quick, chosen = _options()
    scale = QUICK if quick else FULL
    rows = list(all_rows(runners, scale))
    unknown = set(chosen) - {row.name for row in rows}
    if unknown:
        names = ", ".join(row.name for row in rows)
        print(f"no rows named {', '.join(sorted(unknown))}; there are {names}", file=sys.stderr)
        return 2
    return _run([row for row in rows if not chosen or row.name in chosen], scale)


def _options() -> tuple[bool, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pairs and fewer tasks, only for a look")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these, e.g. burst,trip-1000")
    options = parser.parse_args()
    return options.quick, [name for name in options.rows.split(",") if name]


def _run(rows: list[Row], scale: Scale) -> int:
    print(_heading(scale), flush=True)
    begin = time.perf_counter()
    failures = [failure for row in rows for failure in _show(row, scale.pairs)]
    print(f"\n{time.perf_counter() - begin:.0f} s, {_load()}")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _show(row: Row, pairs: int) -> Iterator[str]:
    """Measure and print one row; yield what failed in it."""
    print(f"\n{row.name}: {row.title}", flush=True)
    begin = time.perf_counter()
    try:
        results = measure(row, pairs, in_child)
    except MeasurementError as error:
        print(f"  not measured: {error}", flush=True)
        yield f"{row.name}: not measured"
        return
    for line in lines(row, results):
        print(_formatted(line))
        if line.verdict == "FAILED":
            yield f"{row.name}: {line.reading.label} is {number(line.spread.median)}, {line.reading.aim}"
    print(f"  medians: {medians(row, results)}; took {time.perf_counter() - begin:.0f} s", flush=True)


COLUMNS = "  {:<26}{:>8}   {:<17}{:<17}{:<22}{}"


def _heading(scale: Scale) -> str:
    about = (
        f"{platform.python_implementation()} {platform.python_version()}, uvloop {version('uvloop')}, "
        f"{RELEASE.replace('==', ' ')}, {os.cpu_count()} cores, {_load()}\n"
        f"Medians of {scale.pairs} alternating pairs or more; raw is create_task and await on one uvloop."
    )
    if scale is QUICK:
        about += "\nQUICK: few pairs and few tasks, so these are not the numbers of the table."
    return f"{about}\n\n" + COLUMNS.format("", "median", "quartiles", "min-max", "aim", "").rstrip()


def _formatted(line: Line) -> str:
    spread, aim = line.spread, line.reading.aim
    quartiles, extremes = ("-".join(map(number, pair)) for pair in (spread.quartiles, spread.extremes))
    shown = (line.reading.label, number(spread.median), quartiles, extremes, str(aim or ""), line.verdict)
    return COLUMNS.format(*shown).rstrip()


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
