"""Measure what the gateway adds to the CPU time of agents, trainer and server together.

The same conversations, by the same program with OpenAI's SDK, at the server's own URL and through the
gateway, in alternating rounds of three times as many as are under way at once. Ends with 1 when something
failed that must hold. Linux only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from _agent_play import PROCESSES, Manner, Stage, staged
from _children import MeasurementError
from _table import Aim, Line, Reading, Spread, Values, number
from areal_core.workflow_context import ensure_descriptors

WAYS = ("direct", "gateway")
ALL = "all"
ROUND = 3
"""How many times the sessions under way a round has."""
SELDOM = (10_000, 20, 20)
"""Python's own, (700, 10, 10) or (2000, 10, 10), is for programs with fewer objects than 256 episodes."""

MOST_RATIO = 1.2

Round = dict[str, dict[str, float]]
"""Seconds of CPU for a call, by way and process."""


@dataclass(frozen=True)
class Row:
    """One way to ask, and what is wanted of it."""

    name: str
    title: str
    manner: Manner
    aim: Aim | None = None


ROWS = (
    Row("whole", "neither the agents nor the engine stream", Manner(), Aim(MOST_RATIO, must=MOST_RATIO)),
    Row("collector", f"as whole, with gc.set_threshold{SELDOM} in the trainer", Manner(collector=SELDOM)),
    Row("streamed", "the agents stream, and so the engine does", Manner(stream=True)),
    Row("engine-streams", "only the engine streams: stream_replies=True", Manner(stream_replies=True)),
    Row("aiohttp", "as whole, with the SDK's aiohttp client", Manner(arguments=("aiohttp",))),
)


def main() -> int:
    """Measure what was asked for and return the exit status."""
    options = _options()
    if sys.platform != "linux":
        print("the CPU clock of another process is read as Linux has it; run this there", file=sys.stderr)
        return 2
    ensure_descriptors(8 * options.at_once)  # for the server too, which inherits the limit
    names = [name for name in options.rows.split(",") if name] or [row.name for row in ROWS]
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        known = ", ".join(row.name for row in ROWS)
        print(f"no rows named {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    print(_heading(options), flush=True)
    chosen = [row for row in ROWS if row.name in names]
    failures = [failure for row in chosen for failure in _show(row, options.pairs, options.at_once)]
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 pairs, only for a look")
    parser.add_argument("--pairs", type=int, help="how many rounds of either (default: 9)")
    parser.add_argument("--at-once", type=int, default=256, help="sessions under way (default: 256)")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these, e.g. whole,streamed")
    options = parser.parse_args()
    options.pairs = options.pairs or (3 if options.quick else 9)
    return options


def _heading(options: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("openai", "aiohttp", "uvloop"))
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {versions}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.at_once} sessions at once, "
        f"medians of {options.pairs} alternating pairs"
    )


def _show(row: Row, pairs: int, at_once: int) -> Iterator[str]:
    """Measure and print one row; yield what failed in it."""
    print(f"\n{row.name}: {row.title}", flush=True)
    try:
        with staged(row.manner, ROUND * at_once, at_once) as stage:
            rounds = _measure(stage, pairs)
    except MeasurementError as error:
        print(f"  not measured: {error}", flush=True)
        yield f"{row.name}: not measured"
        return
    for line in _lines(row, rounds):
        print(_formatted(line))
        if line.verdict == "FAILED":
            yield f"{row.name}: {line.reading.label} is {number(line.spread.median)}, {line.reading.aim}"
    for way in WAYS:
        print(f"  {way:<8} {_medians([one[way] for one in rounds])} us a call", flush=True)


def _measure(stage: Stage, pairs: int) -> list[Round]:
    """Return the figures of each pair; every other goes backwards, and one before them is thrown away."""
    take = {"direct": stage.direct, "gateway": stage.gateway}
    rounds: list[Round] = []
    for count in range(pairs + 1):
        ways = WAYS if count % 2 == 0 else WAYS[::-1]
        rounds.append({way: take[way]() for way in ways})
        stage.check_same()
    return rounds[1:]


def _lines(row: Row, rounds: Sequence[Round]) -> Iterator[Line]:
    """Read each line off each pair, then take the medians."""
    values = [_flat(one) for one in rounds]
    for reading in _readings(row):
        yield Line(reading, Spread.of([reading.read(one) for one in values]))


def _readings(row: Row) -> Iterator[Reading]:
    yield Reading("gateway / direct", lambda values: _share(values, ALL) + 1, row.aim)
    for process in PROCESSES:
        yield Reading(f"added by {process}", partial(_share, process=process))


def _share(values: Values, process: str) -> float:
    """Return what *process* takes more with the gateway, as a share of what all take without."""
    return (values[f"gateway {process}"] - values[f"direct {process}"]) / values[f"direct {ALL}"]


def _flat(one: Round) -> Values:
    values = {f"{way} {process}": taken for way in WAYS for process, taken in one[way].items()}
    return values | {f"{way} {ALL}": sum(one[way].values()) for way in WAYS}


def _medians(taken: Sequence[dict[str, float]]) -> str:
    """Return the median figures themselves, for orientation."""
    middle = {name: statistics.median(one[name] for one in taken) * 1e6 for name in PROCESSES}
    return ", ".join(f"{name} {number(middle[name])}" for name in PROCESSES)


def _formatted(line: Line) -> str:
    spread, aim = line.spread, line.reading.aim
    quartiles, extremes = (" to ".join(map(number, pair)) for pair in (spread.quartiles, spread.extremes))
    shown = (line.reading.label, number(spread.median), quartiles, extremes, str(aim or ""), line.verdict)
    return "  {:<18}{:>8}   quartiles {:<18} min-max {:<18} {:<12}{}".format(*shown).rstrip()


if __name__ == "__main__":
    sys.exit(main())
